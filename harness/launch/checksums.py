"""Checksums of finished files, hashed once: a cache by size, change time and inode.

Gigabytes that nobody touched since they were hashed are not read again. Whoever changes a byte changes the file's
`ctime`, which no program can set back, so the file is hashed again and found altered. The cache can be deleted at any
time; it can only cost time, and is not kept where it cannot be written. A file that changed within the clock's
resolution before it was hashed is not entered. That clock is the file system's own, which may be another machine's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.store.atomic import staged_name, write_json
from harness.store.checkpoints import CheckpointMarker, read_marker
from harness.store.markers import Damaged, Unreadable, hash_of, read_marked, size_of
from harness.study.errors import UserError

SCHEMA = 1
NAME = ".checksums.json"
RESOLUTION_NS = 50_000_000  # file times are stamped at the kernel's ticks, at most 10 ms apart; a margin


class Checksums:
    """Checksums of files under `root`, by relative path, as they were when last hashed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / NAME
        self._known: dict[str, list[Any]] = self._read()
        self._changed = False
        self._clock: int | None = None

    def check(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise Damaged unless every file of a marker is there and as the marker says."""
        for name, record in files.items():
            path = folder / name
            stat = size_of(path)
            if stat.st_size != record["bytes"]:
                raise Damaged(f"{path} has {stat.st_size} bytes, its marker says {record['bytes']}")
            if self._sha256(path, stat) != record["sha256"]:
                raise Damaged(f"{path} was altered: its checksum is not the one in its marker")

    def checkpoint(self, path: Path) -> CheckpointMarker:
        """The marker of a whole checkpoint. Raises Damaged."""
        marker = read_marker(path)
        self.check(path, marker.files)
        return marker

    def save(self) -> None:
        """Keep what was hashed; forget files that are gone."""
        if self._changed and self._root.is_dir():
            files = {name: record for name, record in self._known.items() if (self._root / name).exists()}
            with contextlib.suppress(OSError, UserError):
                write_json(self._path, {"schema": SCHEMA, "files": files})
            self._changed = False

    def _sha256(self, path: Path, stat: os.stat_result) -> str:
        name = os.path.relpath(path, self._root)
        mark = [stat.st_size, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(name)
        if known is not None and known[:3] == mark:
            return str(known[3])
        begun = self._now()
        checksum = hash_of(path)
        self._changed = True
        if stat.st_ctime_ns < begun - RESOLUTION_NS:
            self._known[name] = [*mark, checksum]
        else:
            self._known.pop(name, None)
        return checksum

    def _now(self) -> int:
        """The file system's time when the first file was hashed: the change time of a file made for it. 0 where none
        can be made, so that nothing is entered."""
        if self._clock is None:
            probe = staged_name(self._path)
            self._clock = 0
            with contextlib.suppress(OSError):
                probe.touch(exist_ok=False)
                self._clock = probe.stat().st_ctime_ns
                probe.unlink()
        return self._clock

    def _read(self) -> dict[str, list[Any]]:
        try:
            value = read_marked(self._path, SCHEMA)
            return {name: record for name, record in value["files"].items() if len(record) == 4}
        except (FileNotFoundError, Unreadable, Damaged, KeyError, TypeError, AttributeError):
            return {}
