"""What people asked of a study's jobs: `submissions/asked.jsonl`, a line each, appended under the folder's lock.

A `cancel` lasts until a `retry` of the same items. A `retry` makes earlier tries at them forgotten. A tick adds a line
`budget` when it ends jobs because the budget is used up: that is nobody's wish that they stay so.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from harness.store.atomic import append_json_line, read_json_lines
from harness.store.layout import Folder


def path(folder: Folder) -> Path:
    return folder.submissions / "asked.jsonl"


def write(folder: Folder, what: str, items: Collection[str]) -> None:
    """Record a `cancel` or a `retry` of items, as of the submissions so far."""
    there = folder.all_submissions()
    line = {"time": round(time.time(), 3), "what": what, "before": there[-1].number + 1 if there else 0}
    append_json_line(path(folder), {**line, "items": sorted(items)})


def forgotten(folder: Folder) -> dict[str, int]:
    """For each item that was retried: the first submission that counts."""
    return _before(folder, "retry")


def over_budget(folder: Folder) -> dict[str, int]:
    """For each item that the budget ended: the first submission after that."""
    return _before(folder, "budget")


def _before(folder: Folder, what: str) -> dict[str, int]:
    lines = [line for line in read_json_lines(path(folder)) if line["what"] == what]
    return {item: int(line["before"]) for line in lines for item in line["items"]}


def cancelled(folder: Folder) -> set[str]:
    """Items that are not to be done until somebody asks."""
    found: set[str] = set()
    for line in read_json_lines(path(folder)):
        if line["what"] == "cancel":
            found |= set(line["items"])
        elif line["what"] == "retry":
            found -= set(line["items"])
    return found
