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

from harness.store.atomic import publish, staging_folder, sweep, writing
from harness.store.places import expanded

VARIABLE = "ABLATE_CACHE"


def cache_root() -> Path:
    """$ABLATE_CACHE when set, else ~/.cache/ablate. Raises UserError where there is no such home folder."""
    declared = os.environ.get(VARIABLE)
    return expanded(declared).absolute() if declared else expanded("~") / ".cache" / "ablate"


def build_once(
    entry: Path, complete: Callable[[Path], bool], fill: Callable[[Path], None], needed: int | None = None
) -> Path:
    """`entry`, filled by `fill(folder)` unless a complete one is there. Returns `entry`.

    complete: tells a whole entry from a damaged one (which is replaced). Safe against other processes doing the same.
    needed: bytes that it takes, about. What dead processes of this machine left beside it is removed. Raises
    WriteFailed; then no entry is there.
    """
    if complete(entry):
        return entry
    sweep(entry.parent, into=lambda folder: folder.name == "recipes")
    with writing(entry, needed):
        staged = staging_folder(entry)
        try:
            fill(staged)
            publish(staged, entry, complete)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return entry
