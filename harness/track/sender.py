"""Hands a projection on to one tracker, as far as it is there, and keeps what was handed on.

A run that is opened is gone through from its first row, and sent from the first that the tracker does not hold. So
nothing has to be known of how an earlier process ended, and a row is there once. Only a run that was closed with all
that there is to send is marked (`store.tracking.Sent`), and left alone until the folder holds more of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.store.layout import Folder
from harness.store.tracking import Sent, Standing, read_sent, write_sent
from harness.track.projection import Projected, Projection
from harness.track.rows import PathFacts, Updates, done_of, pieces_of, rows
from harness.track.settings import Target
from harness.track.tracker import OpenRun, Row, Tracker, TrackerDown

RETRY_SECONDS = 30.0  # after a tracker was down


@dataclass
class _Open:
    """A run that this process has open. tokens: of the last row of training that was logged; next: the index after it.

    scored: how many points' scores were logged. before: what it was given when it was closed the last time, if it was.
    """

    run: OpenRun
    facts: PathFacts
    before: Sent
    tokens: int = 0
    next: int = 0
    scored: int = 0

    def log(self, row: Row) -> None:
        if row.index >= self.run.held:
            self.run.log(row)


class Sender:
    """One tracker of one study. `tick` sends what has come since the last one; it never raises for the tracker's sake.

    part: (i, n) sends every n-th run only, from the i-th. make: the tracker, made at the first run that needs it.
    """

    def __init__(
        self,
        folder: Folder,
        target: Target,
        projection: Projection,
        make: Callable[[], Tracker],
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._folder, self._target, self._projection, self._make = folder, target, projection, make
        self._tracker: Tracker | None = None
        self._left = list(projection.all[part[0] :: part[1]])
        self._of = len(self._left)
        self._open: dict[str, _Open] = {}
        self._updates = Updates(folder)
        self._down_until = 0.0
        self._done = 0
        self.problem: str | None = None
        self._drop_what_was_sent()

    @property
    def standing(self) -> Standing:
        return Standing(str(self._target), self._done, self._of, self.problem)

    def tick(self, told: Callable[[], None] = lambda: None, now: Callable[[], float] = time.monotonic) -> None:
        """Send what is there. told: called whenever a run was sent whole."""
        if now() < self._down_until:
            return
        for item in list(self._left):
            try:
                if not self._ready(item):
                    continue
                whole = self._send(item)
            except Exception as error:  # whatever a tracker's library raises: not now
                self._let_go(item)
                self.problem = _sentence(error)
                self._down_until = now() + RETRY_SECONDS
                return
            self.problem = None
            if whole:
                self._left.remove(item)
                self._done += 1
                told()

    def close(self) -> None:
        """Close what is still open, as not ended: the work was interrupted, and goes on some day."""
        for item in [item for item in self._left if item.id in self._open]:
            opened = self._open.pop(item.id)
            try:
                opened.run.close(self._summary(item, {}), False)
            except Exception as error:
                opened.run.abandon()
                self.problem = _sentence(error)

    def _drop_what_was_sent(self) -> None:
        for item in list(self._left):
            sent = read_sent(self._folder, self._target.destination, item.id)
            if sent.seal and sent.seal == self._projection.seal(item):
                self._left.remove(item)
                self._done += 1

    def _ready(self, item: Projected) -> bool:
        if item.id in self._open:
            return True
        if self._tracker is None:
            if not self._projection.begun(item):
                return False
            self._tracker = self._make()
        return self._projection.begun(item) if self._tracker.live else self._projection.ended(item)

    def _send(self, item: Projected) -> bool:
        """Send what is there of one run; True when that was all there will be."""
        assert self._tracker is not None
        ended = self._projection.ended(item)  # first: what is read after this is then whole
        trained = self._projection.trained(item)
        opened = self._open.get(item.id)
        if opened is None:
            facts = PathFacts(self._folder, pieces_of(self._folder, item.last))
            before = read_sent(self._folder, self._target.destination, item.id)
            opened = _Open(self._tracker.open(self._projection.tracked(item)), facts, before)
            self._open[item.id] = opened
        for row in rows(self._updates, item.path, opened.facts, opened.tokens):
            opened.log(row)
            opened.tokens, opened.next = row.tokens, row.index + 1
        scores: Mapping[str, Mapping[str, float]] = {}
        if trained and item.evals:
            scores = self._send_scores(item, opened, ended)
        if not ended:
            opened.run.flush()
            return False
        del self._open[item.id]
        opened.run.close(self._summary(item, scores), True)
        following = max(opened.next + opened.scored + len(scores), opened.before.next)
        sent = Sent(self._projection.seal(item), opened.tokens, scores, following)
        write_sent(self._folder, self._target.destination, item.id, item.name, sent)
        return True

    def _send_scores(self, item: Projected, opened: _Open, ended: bool) -> Mapping[str, Mapping[str, float]]:
        """Log the scores of points that are whole; returns all scores that are there."""
        ready = self._projection.scored_points(item)
        if len(ready) <= opened.scored and not ended:
            return {}
        scores, at = self._projection.scores(item), self._projection.point_tokens(item)
        for number, label in enumerate(ready[opened.scored :], start=opened.scored):
            if label in scores:
                opened.log(Row(opened.next + number, at[label], scores[label], scores=True))
        opened.scored = len(ready)
        if ended and opened.run.held:
            for row in _added(opened.before, scores, at):
                opened.log(row)
        return scores

    def _summary(self, item: Projected, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        """What stands beside a run: the scores of its end, how it ended, how far it is."""
        found: dict[str, Any] = {}
        for label in ("end", "ema"):
            found |= scores.get(label, {})
        done = done_of(self._folder.state(item.last))
        outcome = "diverged" if self._projection.diverged(item) else "trained" if done is not None else "unfinished"
        return {**found, "outcome": outcome}

    def _let_go(self, item: Projected) -> None:
        opened = self._open.pop(item.id, None)
        if opened is not None:
            opened.run.abandon()


def _added(before: Sent, scores: Mapping[str, Mapping[str, float]], at: Mapping[str, int]) -> Iterator[Row]:
    """Rows of scores that were not there when the run was closed the last time, above the rows that it had then."""
    if not before.seal:
        return
    for number, (label, values) in enumerate(scores.items()):
        had = before.scored.get(label, {})
        new = {name: value for name, value in values.items() if had.get(name) != value}
        if new:
            yield Row(before.next + number, at[label], new, scores=True)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, TrackerDown) else f"{type(error).__name__}: {text}"


def senders(
    folder: Folder,
    plan: Mapping[str, Any],
    targets: Sequence[Target],
    make: Callable[[Target], Tracker],
    part: tuple[int, int] = (0, 1),
) -> list[Sender]:
    """A sender for each target."""

    def sender(target: Target) -> Sender:
        return Sender(folder, target, Projection(folder, plan, target.tags), lambda: make(target), part)

    return [sender(target) for target in targets]
