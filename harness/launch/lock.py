"""One `ablate run` in a results folder at a time.

The lock is the kernel's (`flock`): however its process ends, the kernel lets go of it, and the next one has it at once.
The file says who holds it, for people, and for machines between which the lock of a file system does not reach: after
the lock was taken, a holder of another machine that still stands in the file is watched until its pulse changes (it is
alive) or has stood still for the lease (it is dead). A holder that lost the folder in such a way stops.

Where the file system has no locks, the record is all there is: a holder of this machine that lives keeps the folder,
and whoever writes its record looks a moment later whether it still stands there. Of several that start together the
last one to write has the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.store import processes
from harness.store.atomic import writing
from harness.store.layout import Folder
from harness.store.places import check_folder_place
from harness.study.errors import UserError

NAME = ".lock"
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.0  # without locks: longer than it takes from looking who holds the folder to writing that we do
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PULSE_AT = 2048  # the record comes first in the file, and is shorter

Note = Callable[[str], None]


@contextlib.contextmanager
def locked(folder: Folder, wait: bool = False, note: Note = lambda text: None) -> Iterator[None]:
    """Hold the folder for this process.

    wait: until whoever holds it has ended, instead of raising UserError. note: called with a line for a person.
    Raises WriteFailed when the folder may not be written to.
    """
    path = folder.root / NAME
    check_folder_place(folder.root)
    with writing(path):
        folder.root.mkdir(parents=True, exist_ok=True)
        handle = _open(path)
    _check_folders(folder)
    try:
        record = _take(handle, folder, wait, note)
        with writing(path):
            pulse = processes.Pulse(path, _PULSE_AT, lost=lambda: _lost(path, record))
        try:
            yield
        finally:
            pulse.stop()
            if _is(_read(path), record):  # never on a doubt: another may be just writing there
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def at_work(folder: Folder) -> bool:
    """Whether the process that holds the folder lives, as far as can be seen from here: on another host it is taken to.
    The lock itself is not tried, which would get in the way of a run that is starting."""
    record = _read(folder.root / NAME)
    return record is not None and processes.alive(record) is not False


def _check_folders(folder: Folder) -> None:
    """Raise WriteFailed for a folder of another user's before any work, not hours into it."""
    for path in (folder.root, folder.manifests, folder.states, folder.runs, folder.evals, folder.models, folder.report):
        if path.exists() and not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            with writing(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _open(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with contextlib.suppress(OSError):  # whoever may write to the folder may hold it, whatever the umask of the first
        os.fchmod(handle, path.parent.stat().st_mode & 0o666)
    return handle


def _take(handle: int, folder: Folder, wait: bool, note: Note) -> dict[str, Any]:
    """Take the lock, or raise UserError (or wait) while somebody holds it. Returns our record, which stands in the
    file."""
    said: list[str] = []

    def held(record: Mapping[str, Any] | None) -> None:
        if not wait:
            raise UserError(_sentence(folder, record))
        if not said:
            said.append(f"waiting for the `ablate` that is at work in {folder.root} ({_holder(record)})")
            note(said[0])
        time.sleep(POLL_SECONDS)

    while (locks := _flock(handle)) is False:
        held(_read(folder.root / NAME))
    while True:
        _outlast(folder, held, note, alone=locks is None)
        ours = processes.identity() | {"since": time.time()}
        with writing(folder.root / NAME):
            _write(handle, ours)
        if locks is None:
            time.sleep(SETTLE_SECONDS)
        if locks or _is(_read(folder.root / NAME), ours):
            return ours


def _outlast(folder: Folder, held: Callable[[Mapping[str, Any] | None], None], note: Note, alone: bool) -> None:
    """Return when whoever stands in the file does not hold the folder any more. alone: the record is all there is,
    without a lock of the file system, so one of this machine that lives holds it."""
    observer, asked = processes.Observer(), False
    while (record := _read(folder.root / NAME)) is not None:
        lives = processes.alive(record)
        if lives and alone:
            held(record)
            continue
        if lives is not None:
            return
        pulse = _pulse(folder.root / NAME)
        if not observer.alive(NAME, record, pulse):
            note(f"{_holder(record)} has given no sign of life for {processes.LEASE_SECONDS:.0f} s: taken over from it")
            return
        if observer.beating(NAME):
            held(record)
            continue
        if not asked:
            asked = True
            note(f"looking whether {_holder(record)} is still at work (up to {processes.LEASE_SECONDS:.0f} s)")
        time.sleep(POLL_SECONDS)


def _flock(handle: int) -> bool | None:
    """Try the lock: whether we have it now. None where the file system has none, and the record in the file must do."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        return None
    return True


def _write(handle: int, record: Mapping[str, Any]) -> None:
    """In place of what stands there and never by way of an empty file, which would say that nobody holds it."""
    os.pwrite(handle, json.dumps(record).ljust(_PULSE_AT).encode(), 0)
    os.ftruncate(handle, _PULSE_AT)
    os.fsync(handle)


def _read(path: Path) -> dict[str, Any] | None:
    """Who stands in the file; None for nobody, or for somebody who is just writing there."""
    try:
        record = json.loads(path.read_bytes()[:_PULSE_AT])
        return record if isinstance(record, dict) and "pid" in record else None
    except (OSError, ValueError):
        return None


def _pulse(path: Path) -> bytes:
    return processes.read_pulse(path)[_PULSE_AT:]


def _taken_over(path: Path, ours: Mapping[str, Any]) -> bool:
    """Whether somebody else stands in the file."""
    there = _read(path)
    return there is not None and not _is(there, ours)


def _is(there: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> bool:
    """Whether a record is ours; two machines may give their processes one number."""
    names = ("host", "pid", "since")
    return there is not None and all(there.get(name) == ours[name] for name in names)


def _lost(path: Path, ours: Mapping[str, Any]) -> bool:
    """Stop this process when it was taken for dead and somebody else holds its folder."""
    lost = _taken_over(path, ours)
    if lost:
        print(f"ablate: {_holder(_read(path))} has taken over {path.parent}; stopping", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
    return lost


def _sentence(folder: Folder, record: Mapping[str, Any] | None) -> str:
    return (
        f"another `ablate` is at work in {folder.root} ({_holder(record)}). Follow it with "
        f"`ablate status {folder.root} --watch`, or add `--wait` to begin when it has ended."
    )


def _holder(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "its process is not known"
    try:
        since = f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(float(record['since'])))}"
    except (KeyError, TypeError, ValueError, OverflowError):
        since = ""
    stopped = processes.alive(record) is True and processes.suspended(int(record["pid"]))
    return processes.described(record) + since + (", suspended" if stopped else "")
