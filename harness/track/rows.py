"""The updates of a path as rows for a tracker, from what its attempts have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from harness.plan.exposure import epochs, views
from harness.plan.fingerprint import base_state, state_at
from harness.plan.science import read_pieces
from harness.store import manifests, states
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged
from harness.store.metrics import read_steps
from harness.track.tracker import Row

Pieces = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Stretch:
    """The part of a path that one segment covers: tokens (start, end]."""

    state: str
    start: int
    end: int


class StateTail:
    """Reads what the attempts at one state have added since it was asked last; every byte once."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._read: dict[Path, int] = {}
        self.steps: dict[int, dict[str, Any]] = {}  # by tokens; a later attempt's update replaces an equal earlier one

    def look(self) -> None:
        for number in self._state.attempt_numbers():
            for row in self._lines(self._state.attempt(number) / "metrics.jsonl"):
                self.steps[int(row["tokens"])] = row

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
        except OSError:
            return
        whole = data.rfind(b"\n") + 1  # what comes after it is still being written
        self._read[path] = self._read.get(path, 0) + whole
        for line in data[:whole].split(b"\n"):
            try:
                row = json.loads(line)
                yield row if "tokens" in row else {}
            except (ValueError, TypeError):
                continue


class Updates:
    """The updates of states, read once where they still grow."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._tails: dict[str, StateTail] = {}
        self._whole: dict[str, dict[int, dict[str, Any]]] = {}

    def of(self, state: str) -> Mapping[int, Mapping[str, Any]]:
        """By tokens of the path."""
        if state in self._whole:
            return self._whole[state]
        where = self.folder.state(state)
        if where.done.exists():
            self._tails.pop(state, None)
            while len(self._whole) >= 4:  # a trunk and its neighbours; a study has more than fit into memory
                self._whole.pop(next(iter(self._whole)))
            self._whole[state] = {int(row["tokens"]): row for row in read_steps(where).rows}
            return self._whole[state]
        tail = self._tails.setdefault(state, StateTail(where))
        tail.look()
        return tail.steps


@dataclass(frozen=True)
class _Span:
    """A piece as rows show it: shares and context, and each source's epochs at both ends."""

    start: int
    end: int
    values: Mapping[str, float]
    begin: Mapping[str, float]
    finish: Mapping[str, float]


class PathFacts:
    """What is known of every token of a path beforehand: shares, context length, epochs of each source."""

    def __init__(self, folder: Folder, pieces: Pieces) -> None:
        self._spans = _spans(folder, pieces)
        self._at = 0

    def at(self, tokens: int) -> dict[str, float]:
        """Of the update that ended at `tokens`. Cheap for tokens that ascend."""
        if not self._spans:
            return {}
        if self._at >= len(self._spans) or tokens <= self._spans[self._at].start:
            self._at = 0
        while self._at + 1 < len(self._spans) and tokens > self._spans[self._at].end:
            self._at += 1
        span = self._spans[self._at]
        part = min(1.0, (tokens - span.start) / (span.end - span.start))
        served = {
            f"epochs/{name}": span.begin[name] + part * (value - span.begin[name])
            for name, value in span.finish.items()
        }
        return {**span.values, **served}


def _spans(folder: Folder, pieces: Pieces) -> list[_Span]:
    names = list(dict.fromkeys(name for piece in pieces for name in piece["science"]["mixture"]))
    sources = {name: manifest for name in names if (manifest := manifests.read_source(folder, name)) is not None}
    pools = {name: int(manifest["train"]["tokens"]) for name, manifest in sources.items()}
    shared = views(sources)
    asked: dict[str, Fraction] = dict.fromkeys(names, Fraction(0))
    spans = []
    for piece in pieces:
        science = piece["science"]
        shares = {name: Fraction(science["mixture"].get(name, 0)) for name in names}
        begin = _epochs(asked, pools, shared)
        for name, share in shares.items():
            asked[name] += share * (piece["end"] - piece["start"])
        values = {f"share/{name}": float(share) for name, share in shares.items()}
        values["context"] = int(science["context"]["length"])
        spans.append(_Span(piece["start"], piece["end"], values, begin, _epochs(asked, pools, shared)))
    return spans


def _epochs(asked: Mapping[str, Fraction], pools: Mapping[str, int], shared: Any) -> dict[str, float]:
    whole = {name: round(tokens) for name, tokens in asked.items()}
    return {name: float(value) for name, value in epochs(whole, pools, shared).items()}


def pieces_of(folder: Folder, state: str) -> list[dict[str, Any]]:
    """The pieces of the path to a state, empty where its `segment.json` is not there."""
    try:
        return list(states.read_segment(folder.state(state))["pieces"])
    except (FileNotFoundError, Damaged, KeyError):
        return []


def expected(pieces: Pieces, start: int, end: int) -> list[int]:
    """Tokens at which the updates of a path in (start, end] end."""
    found: list[int] = []
    for piece in pieces:
        batch = int(piece["science"]["batch_tokens"])
        first, last = max(start, piece["start"]), min(end, piece["end"])
        found += range(first + batch, last + 1, batch)
    return found


def rows(updates: Updates, path: Sequence[Stretch], facts: PathFacts, after: int) -> Iterator[Row]:
    """The rows of a path after token `after` that are there now, ascending, none left out in between.

    What a segment did not compute itself (it was taken up from a checkpoint of another state) is looked for in every
    state whose path agrees with this one so far.
    """
    pieces = pieces_of(updates.folder, path[-1].state)
    for stretch in path:
        if stretch.end <= after:
            continue
        done, end = done_of(updates.folder.state(stretch.state)), stretch.end
        if done is not None and done.outcome == "diverged":
            end = done.tokens
        steps = dict(updates.of(stretch.state))
        wanted = [tokens for tokens in expected(pieces, stretch.start, end) if tokens > after]
        missing = [tokens for tokens in wanted if tokens not in steps]
        if missing and (missing[0] < max(steps, default=0) or done is not None):
            steps.update(_elsewhere(updates, path, missing))
        for tokens in wanted or sorted(steps):
            step = steps.get(tokens)
            if step is not None and max(after, stretch.start) < tokens <= end:
                yield Row(int(step["step"]), tokens, {**values_of(step), **facts.at(tokens)})
        if done is None and not _passed(updates.folder, path, stretch):
            return


def _passed(folder: Folder, path: Sequence[Stretch], stretch: Stretch) -> bool:
    """Whether a later part of the path was begun: nothing is to come in this one."""
    later = path[path.index(stretch) + 1 :]
    return any(begun(folder.state(item.state)) for item in later)


def done_of(state: StateFolder) -> states.Done | None:
    """The marker of a state, None when there is none or it is damaged."""
    try:
        return states.read_done(state)
    except Damaged:
        return None


def begun(state: StateFolder) -> bool:
    """Whether anything was computed towards a state."""
    return state.done.exists() or bool(state.attempt_numbers())


def _elsewhere(updates: Updates, path: Sequence[Stretch], missing: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """Updates at the tokens in `missing` from other states that lie on this path up to there."""
    folder, found = updates.folder, dict[int, Mapping[str, Any]]()
    try:
        ours = states.read_segment(folder.state(path[-1].state))
    except (FileNotFoundError, Damaged):
        return found
    on_path = [folder.state(stretch.state) for stretch in path]
    known = {state.id for state in on_path}
    for state in [*on_path, *(other for other in folder.all_states() if other.id not in known)]:
        left = [tokens for tokens in missing if tokens not in found]
        if not left:
            break
        theirs = updates.of(state.id)
        here = [tokens for tokens in left if tokens in theirs]
        if here and (state.id in known or _agree(ours, state, here[-1])):
            found.update({tokens: theirs[tokens] for tokens in here})
    return found


def _agree(ours: Mapping[str, Any], state: StateFolder, tokens: int) -> bool:
    """Whether the path to `state` is ours over [0, tokens]."""
    try:
        theirs = states.read_segment(state)
        names = [state_at(base_state(path["base"]), *read_pieces(path["pieces"]), tokens) for path in (ours, theirs)]
    except (FileNotFoundError, Damaged, KeyError):
        return False
    return names[0] == names[1]


def values_of(step: Mapping[str, Any]) -> dict[str, float]:
    """An update of `metrics.jsonl` under the names that a dashboard shows."""
    values = {
        f"train/{name}": float(step[name])
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "z_loss", "skipped")
        if step.get(name) is not None
    }
    by_source = step.get("loss_by_source") or {}
    values |= {f"train/loss/{name}": float(loss) for name, loss in by_source.items() if loss is not None}
    return values
