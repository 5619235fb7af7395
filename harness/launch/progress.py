"""What a person sees while a study runs: a bar with an ETA on a terminal, lines elsewhere, nothing with --json."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TextIO

from harness.launch.work import Failure, Result, Work

PLAIN_SECONDS = 10.0  # between two lines of progress where nothing can be drawn over
RATE_SECONDS = 30.0  # over which the speed is averaged


class Tally:
    """Tokens and items done and to do, and the speed, from what the workers report.

    Times are seconds of any monotonic clock, given by the caller.
    """

    def __init__(self, items: Iterable[Work]) -> None:
        items = list(items)
        self.tokens_to_do = sum(item.tokens for item in items)
        self.evaluations_to_do = sum(item.kind == "evaluate" for item in items)
        self.evaluations_done = 0
        self.running: dict[str, Work] = {}
        self._tokens: dict[str, int] = {}  # per training item, what it has trained
        self._history: deque[tuple[float, int]] = deque()

    @property
    def tokens_done(self) -> int:
        return sum(self._tokens.values())

    def started(self, item: Work) -> None:
        self.running[item.id] = item

    def progress(self, item: Work, fields: Mapping[str, Any], now: float) -> None:
        """Take in a training report: `tokens` is the path token reached, `tokens_to` where the segment ends."""
        if item.kind != "train" or "tokens" not in fields:
            return
        left = int(fields["tokens_to"]) - int(fields["tokens"])
        self._tokens[item.id] = max(0, item.tokens - left)
        self._history.append((now, self.tokens_done))
        while self._history[0][0] < now - RATE_SECONDS:
            self._history.popleft()

    def settled(self, item: Work, result: Result) -> None:
        self.running.pop(item.id, None)
        self.evaluations_done += item.kind == "evaluate"
        if result.outcome != "stopped" and item.tokens:
            self._tokens[item.id] = item.tokens

    def rate(self) -> float | None:
        """Tokens per second over all workers, None before two reports have come."""
        if len(self._history) < 2:
            return None
        (t0, before), (t1, after) = self._history[0], self._history[-1]
        return (after - before) / (t1 - t0) if t1 > t0 and after > before else None

    def eta(self) -> float | None:
        """Seconds of training left at this speed."""
        rate = self.rate()
        return None if rate is None else (self.tokens_to_do - self.tokens_done) / rate

    def line(self) -> str:
        """One line: what is done of what, how fast, how long still, and what is running."""
        parts = []
        if self.tokens_to_do:
            parts.append(f"{tokens(self.tokens_done)} of {tokens(self.tokens_to_do)} tokens")
            rate, eta = self.rate(), self.eta()
            if rate is not None and eta is not None and self.tokens_done < self.tokens_to_do:
                parts += [f"{tokens(rate)}/s", f"{duration(eta)} left"]
        if self.evaluations_to_do:
            parts.append(f"{self.evaluations_done} of {self.evaluations_to_do} evaluations")
        names = [doing(item) for item in self.running.values()]
        return " · ".join(parts + names[:3] + ([f"and {len(names) - 3} more"] if len(names) > 3 else []))


def doing(item: Work) -> str:
    """What is being done, in words."""
    return ("evaluating " if item.kind == "evaluate" else "") + item.name


def tokens(count: float) -> str:
    """A count as people write it: 512, 61.4k, 2.06M, 1.20B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}" if count < 1000 * size else f"{count / size:,.0f}{letter}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A length of time as people read it: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Silent:
    """Shows nothing: stdout holds one JSON object and nothing else."""

    def note(self, text: str) -> None: ...

    def began(self, items: Iterable[Work]) -> None: ...

    def ended(self) -> None: ...

    def started(self, item: Work) -> None: ...

    def progress(self, item: Work, fields: Mapping[str, Any]) -> None: ...

    def settled(self, item: Work, result: Result) -> None: ...

    def waiting(self, item: Work, elsewhere: Mapping[str, Any]) -> None: ...

    def retrying(self, item: Work, failure: Failure, time: int, of: int) -> None:
        self.note(f"{failure} while {doing(item)}; going on from its newest checkpoint ({time} of {of} retries)")


class PlainLines(Silent):
    """Lines: one for every item that ends, and one of progress at most every ten seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._tally = Tally([])
        self._last = time.monotonic()

    def note(self, text: str) -> None:
        # The terminal may be closed, the reader of a pipe gone, the disk of a log full: the work goes on without them.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self._stream, flush=True)

    def began(self, items: Iterable[Work]) -> None:
        self._tally = Tally(items)

    def started(self, item: Work) -> None:
        self._tally.started(item)

    def progress(self, item: Work, fields: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self._tally.progress(item, fields, now)
        if now - self._last >= PLAIN_SECONDS:
            self._last = now
            self.note(self._tally.line())

    def settled(self, item: Work, result: Result) -> None:
        self._tally.settled(item, result)
        self.note(_settled_line(item, result))

    def waiting(self, item: Work, elsewhere: Mapping[str, Any]) -> None:
        self.note(_waiting_line(item, elsewhere))


class Bar(Silent):
    """A bar over all tokens to train (or evaluations, when nothing is trained) that stays at the terminal's foot."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._tally = Tally([])
        self._console = Console(highlight=False)
        self._bar = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        )
        self._shown: Any = None

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(text, markup=False, soft_wrap=True)

    def began(self, items: Iterable[Work]) -> None:
        self._tally = Tally(items)
        total = self._tally.tokens_to_do or self._tally.evaluations_to_do or None
        self._shown = self._bar.add_task("", total=total)
        self._bar.start()

    def ended(self) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            self._bar.stop()

    def started(self, item: Work) -> None:
        self._tally.started(item)
        self._draw()

    def progress(self, item: Work, fields: Mapping[str, Any]) -> None:
        self._tally.progress(item, fields, time.monotonic())
        self._draw()

    def settled(self, item: Work, result: Result) -> None:
        self._tally.settled(item, result)
        if result.failure is not None or result.outcome == "diverged":
            self.note(_settled_line(item, result))
        self._draw()

    def waiting(self, item: Work, elsewhere: Mapping[str, Any]) -> None:
        self.note(_waiting_line(item, elsewhere))

    def _draw(self) -> None:
        done = self._tally.tokens_done if self._tally.tokens_to_do else self._tally.evaluations_done
        with contextlib.suppress(OSError):
            self._bar.update(self._shown, completed=done, description=self._tally.line())


class Shown:
    """A listener with its bar drawn for as long as the block runs."""

    def __init__(self, listener: Silent, items: Iterable[Work]) -> None:
        self._listener = listener
        self._items = list(items)

    def __enter__(self) -> Silent:
        self._listener.began(self._items)
        return self._listener

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.ended()


def listener_for(quiet: bool) -> Silent:
    """What suits where stdout goes."""
    if quiet:
        return Silent()
    return Bar() if sys.stdout.isatty() else PlainLines()


def _settled_line(item: Work, result: Result) -> str:
    said = f"{result.outcome} {doing(item) if result.failure is not None else item.name}"
    return said if result.failure is None else f"{said}: {result.failure}"


def _waiting_line(item: Work, elsewhere: Mapping[str, Any]) -> str:
    return f"waiting for {item.name}, which is being trained by process {elsewhere['pid']} on {elsewhere['host']}"
