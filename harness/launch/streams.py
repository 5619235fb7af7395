"""Where a worker's stdout and stderr go: the attempt's folder, as soon as there is an attempt.

The trainer begins the attempt, so its number is not known when the work starts. Until then the files lie in the state's
folder; they are renamed into the attempt's while open, which a running process does not notice.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.store.atomic import read_json, writing
from harness.store.layout import StateFolder

STREAMS = ("stdout", "stderr")


def pending(state: StateFolder, kind: str, stream: str) -> Path:
    """The file of a stream outside any attempt: of a base, of an evaluation, or before the attempt has begun."""
    return state.root / f"{kind}.{stream}"


@contextmanager
def captured(state: StateFolder, kind: str) -> Iterator[None]:
    """Send file descriptors 1 and 2 to the state's files, then to the attempt's, for as long as the block runs."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    files = []
    for stream in STREAMS:
        path = pending(state, kind, stream)
        with writing(path):
            state.root.mkdir(parents=True, exist_ok=True)
            files.append(os.open(path, flags, 0o666))
    saved = [os.dup(1), os.dup(2)]
    try:
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        yield
    finally:
        _flush()
        for target, original in zip((1, 2), saved, strict=True):
            os.dup2(original, target)
        for handle in (*files, *saved):
            os.close(handle)
        if kind in ("train", "merge"):
            adopt(state, os.getpid(), kind)


def adopt(state: StateFolder, pid: int, kind: str = "train") -> int | None:
    """Give the streams of process `pid` to the attempt that it began. Returns its number, None without one."""
    numbers = state.attempt_numbers()
    if not numbers:
        return None
    folder = state.attempt(numbers[-1])
    try:
        if read_json(folder / "env.json").get("pid") != pid:
            return None
    except (OSError, ValueError):
        return None
    for stream in STREAMS:
        source = pending(state, kind, stream)
        if source.exists() and not (folder / stream).exists():
            source.rename(folder / stream)
    return numbers[-1]


def _flush() -> None:
    """What was printed and cannot be written (the disk is full) is lost; the work is not."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
