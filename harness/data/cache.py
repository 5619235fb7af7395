"""The content-addressed store that all studies share: token stores and trained tokenizers.

An entry is a folder named by a digest of what it was made from. It is filled aside, made durable and renamed into
place, so it is there whole or not at all; when two processes build the same entry at once, the first to finish wins
and the other one's work, equal by construction, is dropped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.store.atomic import fsync_folder, fsync_tree, staging_folder

VARIABLE = "ABLATE_CACHE"


def cache_root() -> Path:
    """$ABLATE_CACHE when set, else ~/.cache/ablate."""
    declared = os.environ.get(VARIABLE)
    return Path(declared).expanduser().absolute() if declared else Path.home() / ".cache" / "ablate"


def build_once(entry: Path, complete: Callable[[Path], bool], fill: Callable[[Path], None]) -> Path:
    """`entry`, filled by `fill(folder)` unless a complete one is there. Returns `entry`.

    complete: tells a whole entry from a damaged one (which is replaced). Safe against other processes doing the same.
    """
    if complete(entry):
        return entry
    staged = staging_folder(entry)
    try:
        fill(staged)
        fsync_tree(staged)
        _rename_unless_there(staged, entry, complete)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return entry


def _rename_unless_there(staged: Path, entry: Path, complete: Callable[[Path], bool]) -> None:
    while True:
        try:
            staged.rename(entry)  # refused by the system while a filled folder has the name
        except OSError:
            if not entry.exists():
                raise
            if complete(entry):
                return
            _set_aside(entry)
        else:
            fsync_folder(entry.parent)
            return


def _set_aside(damaged: Path) -> None:
    """Remove a damaged entry, out of sight first: another process may be doing the same."""
    aside = staging_folder(damaged)
    try:
        damaged.rename(aside / "damaged")
    except FileNotFoundError:
        pass
    finally:
        shutil.rmtree(aside, ignore_errors=True)
