"""One `ablate run` in a results folder at a time. However its process ends, the kernel lets go of the lock."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager

from harness.store.attempts import process_identity, process_start
from harness.store.layout import Folder
from harness.study.errors import UserError

NAME = ".lock"


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the folder for this process. Raises UserError when another one holds it."""
    folder.root.mkdir(parents=True, exist_ok=True)
    with (folder.root / NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another `ablate` is at work in {folder.root} ({_holder(file.read())}); "
                f"follow it with `ablate status {folder.root} --watch`"
            ) from None
        file.truncate(0)
        file.write(json.dumps(process_identity()))
        file.flush()
        yield


def at_work(folder: Folder) -> bool:
    """Whether the process that locked the folder last still lives, as far as can be seen from here: on another host it
    is taken to. The lock itself is not tried, which would get in the way of a run that is starting."""
    try:
        holder = json.loads((folder.root / NAME).read_text())
        here = holder["host"] == process_identity()["host"]
        return not here or process_start(int(holder["pid"])) == holder["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "its process is not known"
