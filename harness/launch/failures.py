"""Classes of failure, by evidence: the first that matches wins. An exit code alone never says that work was done.

killed      the worker was ended by a signal
crashed     the worker left without a result
stopped     the worker was told to stop by somebody else than `ablate run`
memory      no memory left on this machine
memory-gpu  no memory left on the GPU
disk        no space left on the disk, or over quota; nothing more is begun
forbidden   a file or folder that may not be written to, or read
fenced      another process has begun the same work
damaged     a file that it needs is not whole
parent      something that it needs failed
rank        one of the processes that train together is gone
user        a mistake in the study or in its inputs
error       anything else
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from harness.launch.work import Failure
from harness.store.atomic import FORBIDDEN, FULL, WriteFailed, errno_of, explained
from harness.store.attempts import Fenced
from harness.store.markers import Damaged
from harness.study.errors import UserError

# Errors of the system that are nobody's mistake in the code: full or failing disks, permissions, too many open files,
# and paths at which something else stands than a path is for.
_PLACES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
ENVIRONMENT = (
    *(*FULL, *FORBIDDEN, *_PLACES, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)

STOPPED = Failure("stopped", "told to stop by somebody else than `ablate run`; it checkpointed and left")

FENCED = Failure("fenced", "a newer attempt at the same state has begun in another process")


def of_exception(error: BaseException) -> Failure:
    """The failure that an exception in the work stands for."""
    said = str(error) if isinstance(error, (UserError, Damaged)) else f"{type(error).__name__}: {error}"
    return Failure(_kind(error), one_line(said, 1000 if isinstance(error, WriteFailed) else 300))


def of_environment(error: BaseException) -> UserError | None:
    """What a person is told when the system refused a call of `ablate` itself; None for a defect of the harness."""
    if not isinstance(error, OSError) or error.errno not in ENVIRONMENT:
        return None
    name = error.filename
    if isinstance(name, (str, bytes)):
        failed = explained(error, Path(os.fsdecode(name))) if error.errno in FULL else None
        return failed or UserError(f"{os.fsdecode(name)}: {error.strerror}.")
    return UserError(f"the system refused to read or write (stdout, as a rule): {error.strerror}. Run it again.")


def _kind(error: BaseException) -> str:
    if isinstance(error, WriteFailed):
        return error.kind
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, Fenced):
        return "fenced"
    if isinstance(error, Damaged):
        return "damaged"
    # torch is not imported for its exception: its name is enough.
    if type(error).__name__ in ("OutOfMemoryError", "OutOfMemory"):
        return "memory-gpu"
    if type(error).__name__ == "RankLost":
        return "rank"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "memory"
    if errno_of(error) in FULL:
        return "disk"
    if errno_of(error) in FORBIDDEN:
        return "forbidden"
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
