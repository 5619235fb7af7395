"""Classes of failure, by evidence: the first that matches wins. An exit code alone never says that work was done."""

from __future__ import annotations

import errno
import signal

from harness.launch.work import Failure
from harness.store.attempts import Fenced
from harness.store.markers import Damaged
from harness.study.errors import UserError

CLASSES = {
    "killed": "the worker was ended by a signal",
    "crashed": "the worker left without a result",
    "stopped": "the worker was told to stop by somebody else than `ablate run`",
    "memory": "no memory left on this machine",
    "memory-gpu": "no memory left on the GPU",
    "disk": "no space left on the disk, or over quota",
    "fenced": "another process has begun the same work",
    "damaged": "a file that it needs is not whole",
    "parent": "something that it needs failed",
    "user": "a mistake in the study or in its inputs",
    "error": "anything else",
}


STOPPED = Failure("stopped", "told to stop by somebody else than `ablate run`; it checkpointed and left")

FENCED = Failure("fenced", "a newer attempt at the same state has begun in another process")


def of_exception(error: BaseException) -> Failure:
    """The failure that an exception in the work stands for."""
    said = str(error) if isinstance(error, (UserError, Damaged)) else f"{type(error).__name__}: {error}"
    return Failure(_kind(error), one_line(said))


def _kind(error: BaseException) -> str:
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, Fenced):
        return "fenced"
    if isinstance(error, Damaged):
        return "damaged"
    # torch is not imported for its exception: its name is enough.
    if type(error).__name__ in ("OutOfMemoryError", "OutOfMemory"):
        return "memory-gpu"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    return "error"


def of_death(returncode: int, last_words: str = "") -> Failure:
    """The failure of a worker that died. returncode: as `subprocess` gives it, negative for a signal."""
    if returncode < 0:
        name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
        hint = "; the kernel does this when memory runs out" if -returncode == signal.SIGKILL else ""
        return Failure("killed", f"killed by signal {-returncode} ({name}){hint}")
    said = one_line(last_words)
    return Failure("crashed", f"the worker left with exit code {returncode}" + (f": {said}" if said else ""))


def one_line(text: str, most: int = 300) -> str:
    """The last line of `text` that says something, cut to `most` characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1] if len(lines) > 1 and lines[0].startswith("Traceback") else lines[0]
    return line if len(line) <= most else line[: most - 1] + "…"
