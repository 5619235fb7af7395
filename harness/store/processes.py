"""Which process holds something, and whether it is still at work.

A process is named by its place (host, machine, process namespace), its boot, its id and the tick at which it began: ids
are used again, the pair of id and start is not. From the same place it is known at once whether it lives. Of a process
elsewhere nothing is known but what it writes: its pulse, a line that changes every few seconds. It is dead when the
line has not changed for `LEASE_SECONDS` of the observer's monotonic clock. Times of two machines are never compared.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

BEAT_SECONDS = 5.0
LEASE_SECONDS = 60.0
WIDTH = 44  # bytes of a pulse: it is written over itself, which needs no room on a full disk


_task: dict[str, Any] = {}  # of the scheduler's job that this process works for


def works_for(task: Mapping[str, Any]) -> None:
    """Have the identity of this process name the task of a scheduler that it works for."""
    _task.clear()
    _task.update(task)


def identity() -> dict[str, Any]:
    """This process: enough to tell later whether this very process is still alive, and to tell a person whose it is."""
    mine = {**_place(), "user": _user(), "boot": _boot(), "pid": os.getpid(), "started": process_start(os.getpid())}
    return {**mine, "slurm": dict(_task)} if _task else mine


def process_start(pid: int) -> int | None:
    """When a process began, in the kernel's clock ticks since boot; None when there is no such process at work."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])  # a zombie is dead, not yet collected


def suspended(pid: int) -> bool:
    """Whether a process of this machine is stopped (Ctrl-Z, SIGSTOP, a debugger)."""
    fields = _stat(pid)
    return fields is not None and fields[0] in "Tt"


def alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote `record` (an `identity`) lives; None when that cannot be told from here."""
    if any(record.get(name, value) != value for name, value in _place().items()) or "host" not in record:
        return None
    if record.get("boot", _boot()) != _boot():
        # The machine was started again, unless hosts that look alike share nothing but their name.
        return False if record.get("machine") else None
    try:
        return bool(process_start(int(record["pid"])) == record["started"] is not None)
    except (KeyError, TypeError, ValueError):
        return None


def here(record: Mapping[str, Any]) -> bool:
    """Whether the process that wrote `record` is this one."""
    return alive(record) is True and record["pid"] == os.getpid()


def described(record: Mapping[str, Any]) -> str:
    """`ada@host, process 123`, as far as the record tells."""
    user = f"{record['user']}@" if record.get("user") else ""
    return f"{user}{record.get('host', 'a host that is not known')}, process {record.get('pid', 'not known')}"


@lru_cache(maxsize=1)
def tag() -> str:
    """This process as a part of a file's name: `pid-start-place`."""
    return f"{os.getpid()}-{process_start(os.getpid()) or 0}-{_place_hash()}"


def abandoned(name: str) -> bool:
    """Whether a staged name (`.final.TAG.random.tmp`) was left by a process of this place that is dead."""
    parts = name.split(".")
    if len(parts) < 5 or parts[-1] != "tmp":
        return False
    pid, _, rest = parts[-3].partition("-")
    started, _, place = rest.partition("-")
    if not (pid.isdigit() and started.isdigit()) or place != _place_hash():
        return False
    return process_start(int(pid)) != int(started)


@lru_cache(maxsize=1)
def _place() -> dict[str, str]:
    """Where process ids mean the same. Containers on one machine have namespaces of their own."""
    machine = _read("/etc/machine-id")
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    # The id itself is confidential (machine-id(5)); a hash of it tells machines apart as well.
    hashed = hashlib.sha256(f"ablate {machine}".encode()).hexdigest()[:12] if machine else ""
    return {"host": socket.gethostname(), "machine": hashed, "pid_namespace": namespace}


@lru_cache(maxsize=1)
def _place_hash() -> str:
    place = _place()
    parts = [place["host"], place["machine"] or _boot(), place["pid_namespace"]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1)
def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"  # an id without a name: usual in containers


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


class Pulse(threading.Thread):
    """Writes a pulse every few seconds until `stop`, or until this process ends in whatever way.

    The line holds a count and the seconds since `watched` (a file that the work writes to) last grew, both by this
    process's monotonic clock. lost: asked before every beat; True ends the pulse (somebody else has taken over).
    """

    def __init__(
        self, path: Path, offset: int = 0, watched: Path | None = None, lost: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(name="pulse", daemon=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._offset = offset
        self._watched = watched
        self._lost = lost
        self._ended = threading.Event()
        self._grew = time.monotonic()
        self._size = -1
        self._count = 0
        self._beat()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                if self._lost():
                    return
                self._beat()
            except OSError:
                continue  # a disk that is full or away for a moment: the next beat tries again

    def stop(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self.join()
            os.close(self._file)

    def _beat(self) -> None:
        size = self._watched.stat().st_size if self._watched is not None and self._watched.exists() else 0
        if size != self._size:
            self._size, self._grew = size, time.monotonic()
        self._count += 1
        line = f"{self._count} {time.monotonic() - self._grew:.1f}".ljust(WIDTH - 1) + "\n"
        os.pwrite(self._file, line.encode(), self._offset)
        os.fdatasync(self._file)  # another machine sees it only when it has left this one


def quiet_seconds(pulse: bytes) -> float | None:
    """Seconds for which the work of a process had written nothing at its last beat; None when there was none."""
    try:
        return float(pulse.split()[1])
    except (IndexError, ValueError):
        return None


def read_pulse(path: Path) -> bytes:
    """The pulse in `path` as it stands, empty when there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


class Observer:
    """Watches pulses: a process is alive until its pulse has stood still for the lease, as seen from here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._beats: set[str] = set()

    def alive(self, key: str, record: Mapping[str, Any], pulse: bytes) -> bool:
        """Whether the process of `record`, whose pulse is `pulse` now, counts as alive. `key` names what it holds.

        A process of this place that is dead is dead at once. One that exists but is suspended loses what it holds like
        one of another machine, when the lease is over: nobody else could go on, and what it may still write is fenced.
        """
        if alive(record) is False:
            return False
        now = self._clock()
        before = self._seen.get(key)
        if before is None or before[0] != pulse:
            self._seen[key] = (pulse, now)
            if before is not None:
                self._beats.add(key)
            return True
        return now - before[1] < LEASE_SECONDS

    def beating(self, key: str) -> bool:
        """Whether the pulse was seen to change."""
        return key in self._beats
