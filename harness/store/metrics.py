"""Metrics: `attempts/<k>/metrics.jsonl`, one line per update, written by that attempt alone.

An attempt that was killed may have logged updates after its last checkpoint; the next attempt computes them again.
Both must agree to the bit, else something in the run is not deterministic and the state is flagged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.store.atomic import read_json_lines
from harness.store.layout import StateFolder

# What two computations of one update must agree on; times and speeds may differ.
SCIENCE = ("loss", "loss_by_source", "grad_norm", "lr", "labels", "step")


class MetricsWriter:
    """Appends lines in batches: one write every `every` lines, and on `flush`."""

    def __init__(self, path: Path, every: int = 50) -> None:
        self._path = path
        self._every = every
        self._lines: list[str] = []

    def write(self, metrics: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(metrics))
        if len(self._lines) >= self._every:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            with self._path.open("ab") as file:
                file.write(("\n".join(self._lines) + "\n").encode())
            self._lines.clear()


@dataclass
class Steps:
    """The updates of a segment in token order, and the tokens at which attempts disagreed."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    disagreements: list[int] = field(default_factory=list)


def read_steps(state: StateFolder) -> Steps:
    """The segment's updates, merged over its attempts; a later attempt's line replaces an equal earlier one."""
    by_tokens: dict[int, dict[str, Any]] = {}
    disagreements: set[int] = set()
    for number in state.attempt_numbers():
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
    """The newest line that any attempt has written: what `status` shows. Reads only the end of each file."""
    newest: dict[str, Any] | None = None
    for number in numbers if numbers is not None else state.attempt_numbers():
        row = _tail(state.attempt(number) / "metrics.jsonl")
        if row is not None and (newest is None or row.get("time", 0) >= newest.get("time", 0)):
            newest = row
    return newest


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
