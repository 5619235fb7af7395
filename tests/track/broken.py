"""A tracker whose library has a fault."""

from __future__ import annotations

from pathlib import Path

from harness.store.layout import Folder
from harness.track.settings import Target
from harness.track.tracker import OpenRun, TrackedRun


class BrokenTracker:
    live = True

    def __init__(self, target: Target, folder: Folder, scratch: Path) -> None: ...

    def open(self, run: TrackedRun) -> OpenRun:
        raise ZeroDivisionError("division by zero")
