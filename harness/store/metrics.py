"""Metrics: `attempts/<k>/metrics.jsonl`, one line per update, written by that attempt alone.

An attempt that was killed may have logged updates after its last checkpoint; the next attempt computes them again.
Both must agree to the bit, else something in the run is not deterministic and the state is flagged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.store.atomic import append_lines, read_json_lines
from harness.store.layout import StateFolder

# What two computations of one update must agree on; times and speeds may differ.
SCIENCE = ("loss", "loss_by_source", "grad_norm", "lr", "labels", "step", "skipped")


class MetricsWriter:
    """Appends lines in batches: one write every `every` lines or `seconds`, and on `flush`. Raises WriteFailed."""

    def __init__(self, path: Path, every: int = 50, seconds: float = 10.0) -> None:
        self._path = path
        self._every = every
        self._seconds = seconds
        self._lines: list[str] = []
        self._flushed = time.monotonic()

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(metrics))
        if len(self._lines) >= self._every or time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        if self._lines:
            append_lines(self._path, ("\n".join(self._lines) + "\n").encode())
            self._lines.clear()


@dataclass
class Steps:
    """The updates of a segment in token order, and the tokens at which attempts disagreed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    disagreements: list[int] = field(default_factory=list)


def read_steps(state: StateFolder, numbers: Iterable[int] | None = None) -> Steps:
    """The segment's updates, merged over its attempts (or those of `numbers`, ascending); a later attempt's line
    replaces an equal earlier one."""
    by_tokens: dict[int, dict[str, Any]] = {}
    disagreements: set[int] = set()
    for number in state.attempt_numbers() if numbers is None else numbers:
        for row in read_json_lines(state.attempt(number) / "metrics.jsonl"):
            earlier = by_tokens.get(row["tokens"])
            if earlier is not None and not _agree(earlier, row):
                disagreements.add(row["tokens"])
            by_tokens[row["tokens"]] = row
    return Steps([by_tokens[tokens] for tokens in sorted(by_tokens)], sorted(disagreements))


def _agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    # Compared as JSON so that NaN, where a run diverged, equals itself.
    return _science(a) == _science(b)


def _science(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in SCIENCE], sort_keys=True)


def last_row(state: StateFolder, numbers: Iterable[int] | None = None) -> dict[str, Any] | None:
    """The last line of the newest attempt that has written one: what `status` shows. Reads only the ends of files.

    Attempts are in the order of their numbers, whatever their clocks said.
    """
    for number in sorted(numbers if numbers is not None else state.attempt_numbers(), reverse=True):
        row = _tail(state.attempt(number) / "metrics.jsonl")
        if row is not None:
            return row
    return None


def _tail(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        return row
    return None
