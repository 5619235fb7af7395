"""What people asked of a study's jobs: `submissions/asked/<n>-<token>.json`, a file each, in the order of n.

Whoever asks holds no lock and may sit at another machine, so nobody writes to a file of another's: of two that ask at
once, both are heard. Folders of before have `submissions/asked.jsonl` as well, whose lines came first.

A `cancel` lasts until a `retry` of the same items. A `retry` makes earlier tries at them forgotten. A tick adds a line
`budget` when it ends jobs because the budget is used up: that is nobody's wish that they stay so.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.store.atomic import read_json_lines, write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked
from harness.study.errors import UserError

SCHEMA = 1


def _files(folder: Folder) -> list[tuple[int, Path]]:
    """Every request with its number, in order."""
    found = (folder.submissions / "asked").glob("[0-9]*-*.json")
    return sorted((int(path.name.partition("-")[0]), path) for path in found)


def write(folder: Folder, what: str, items: Collection[str]) -> None:
    """Record a `cancel` or a `retry` of items, as of the submissions so far; it is durable when this returns."""
    there, before = folder.all_submissions(), _files(folder)
    request = {"schema": SCHEMA, "time": round(time.time(), 6), "what": what, "items": sorted(items)}
    number = before[-1][0] + 1 if before else 0
    path = folder.submissions / "asked" / f"{number}-{secrets.token_hex(4)}.json"
    write_json(path, {**request, "before": there[-1].number + 1 if there else 0})


def _read(folder: Folder) -> list[dict[str, Any]]:
    """All that was asked, in order; what two machines have given one number, in that of their clocks. Raises
    UserError."""
    lines = read_json_lines(folder.submissions / "asked.jsonl")
    found = []
    for number, path in _files(folder):
        try:
            found.append((number, read_marked(path, SCHEMA)))
        except Damaged as reason:
            raise UserError(
                f"what was asked of the jobs is damaged: {reason}. Remove the file and ask again."
            ) from None
    return lines + [request for _, request in sorted(found, key=lambda one: (one[0], one[1]["time"]))]


def forgotten(folder: Folder) -> dict[str, int]:
    """For each item that was retried: the first submission that counts."""
    return _before(folder, "retry")


def over_budget(folder: Folder) -> dict[str, int]:
    """For each item that the budget ended: the first submission after that."""
    return _before(folder, "budget")


def _before(folder: Folder, what: str) -> dict[str, int]:
    lines = [line for line in _read(folder) if line["what"] == what]
    return {item: int(line["before"]) for line in lines for item in line["items"]}


def cancelled(folder: Folder) -> set[str]:
    """Items that are not to be done until somebody asks."""
    found: set[str] = set()
    for line in _read(folder):
        if line["what"] == "cancel":
            found |= set(line["items"])
        elif line["what"] == "retry":
            found -= set(line["items"])
    return found
