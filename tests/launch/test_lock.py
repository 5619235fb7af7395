"""Who holds a results folder: the kernel's lock on this machine, the pulse in the file between machines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.launch import lock
from harness.launch.lock import at_work, locked
from harness.store import processes
from harness.store.layout import Folder
from harness.study.errors import UserError

ELSEWHERE = {"host": "node-17", "machine": "another", "user": "grace", "boot": "b", "pid": 4711, "started": 5}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(processes, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.02)


def write_holder(folder: Folder, beat: int = 0, **changes: Any) -> None:
    """What a process of another machine has in the file, written by hand. The clock there is a year ahead."""
    record = {**ELSEWHERE, "since": time.time() + 3e7, **changes}
    (folder.root / lock.NAME).write_bytes(json.dumps(record).ljust(2048).encode() + pulse_line(beat))


def pulse_line(beat: int) -> bytes:
    return (f"{beat} 0.0".ljust(processes.WIDTH - 1) + "\n").encode()


@contextmanager
def beating(folder: Folder) -> Iterator[None]:
    """A holder elsewhere whose pulse changes."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        with (folder.root / lock.NAME).open("r+b", buffering=0) as file:
            while not ended.wait(0.05):
                count += 1
                os.pwrite(file.fileno(), pulse_line(count), 2048)  # in place, as a real one: never an empty file

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_the_second_is_told_who_holds_the_folder_since_when_and_what_to_do(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with locked(folder), pytest.raises(UserError) as refused, locked(folder):
        raise AssertionError("two hold it")
    said = str(refused.value)
    me = processes.identity()
    assert f"{me['user']}@{me['host']}, process {os.getpid()}, since {time.strftime('%Y-')}" in said
    assert f"ablate status {tmp_path} --watch" in said and "`--wait`" in said
    with locked(folder):
        assert at_work(folder)
    assert not at_work(folder)


def test_whoever_waits_has_the_folder_as_soon_as_its_holder_was_killed(tmp_path: Path) -> None:
    script = (
        "import time; from harness.launch.lock import *\n"
        f"with locked(Folder({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        holder.kill()

    with locked(Folder(tmp_path), wait=True, note=note):
        holder.wait()
    assert len(notes) == 1 and f"process {holder.pid}" in notes[0] and notes[0].startswith("waiting for")


def test_a_suspended_holder_is_said_to_be_suspended(tmp_path: Path) -> None:
    script = (
        "import time; from harness.launch.lock import *\n"
        f"with locked(Folder({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        with pytest.raises(UserError, match="suspended"), locked(Folder(tmp_path)):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_holder_of_another_machine_whose_pulse_changes_keeps_the_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    write_holder(folder)
    with beating(folder):
        assert at_work(folder)
        with pytest.raises(UserError, match=r"grace@node-17, process 4711, since"), locked(folder):
            pass


def test_a_holder_of_another_machine_without_a_pulse_is_taken_over_from_and_said_so(tmp_path: Path) -> None:
    folder, notes = Folder(tmp_path), []
    write_holder(folder)
    begun = time.monotonic()
    with locked(folder, note=notes.append):
        assert time.monotonic() - begun >= processes.LEASE_SECONDS  # never at once, whatever the clocks say
        assert json.loads((tmp_path / lock.NAME).read_bytes()[:2048])["pid"] == os.getpid()
    assert "looking whether grace@node-17" in notes[0] and "no sign of life" in notes[1]


def test_waiting_for_another_machine_ends_when_its_pulse_does(tmp_path: Path) -> None:
    folder, notes = Folder(tmp_path), []
    write_holder(folder)
    pulse = beating(folder)
    pulse.__enter__()
    timer = threading.Timer(0.5, lambda: pulse.__exit__(None, None, None))
    timer.start()
    with locked(folder, wait=True, note=notes.append):
        assert not timer.is_alive()
    assert any(text.startswith("waiting for") for text in notes) and "no sign of life" in notes[-1]


def test_who_was_taken_over_from_stops_and_leaves_the_file_to_the_new_holder(tmp_path: Path) -> None:
    script = (
        "import time; from harness.launch.lock import *; processes.BEAT_SECONDS = 0.05\n"
        f"with locked(Folder({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stderr is not None
    holder.stdout.readline()
    write_holder(Folder(tmp_path))
    assert holder.wait(timeout=30) == -signal.SIGTERM
    assert "grace@node-17" in holder.stderr.read()
    assert json.loads((tmp_path / lock.NAME).read_bytes()[:2048])["pid"] == 4711


# A file system without locks


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_living_holder_of_this_machine_keeps_the_folder(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        record = {**processes.identity(), "pid": other.pid, "started": processes.process_start(other.pid), "since": 1.0}
        (tmp_path / lock.NAME).write_bytes(json.dumps(record).ljust(2048).encode())
        with pytest.raises(UserError, match=f"process {other.pid}"), locked(Folder(tmp_path)):
            pass
        assert json.loads((tmp_path / lock.NAME).read_bytes()[:2048])["pid"] == other.pid
    finally:
        other.kill()
        other.wait()
    with locked(Folder(tmp_path)):  # it is dead now, and known to be
        assert json.loads((tmp_path / lock.NAME).read_bytes()[:2048])["pid"] == os.getpid()
    assert (tmp_path / lock.NAME).read_bytes() == b""


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_first_of_two_that_start_together_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = lock._write

    def then_another(handle: int, record: Any) -> None:
        write(handle, record)
        write_holder(Folder(tmp_path))  # it saw nobody, either, and wrote after us

    monkeypatch.setattr(lock, "_write", then_another)
    with beating_after(tmp_path), pytest.raises(UserError, match="grace@node-17"), locked(Folder(tmp_path)):
        pass
    assert json.loads((tmp_path / lock.NAME).read_bytes()[:2048])["pid"] == 4711


@contextmanager
def beating_after(root: Path) -> Iterator[None]:
    (root / lock.NAME).touch()
    with beating(Folder(root)):
        yield


def test_who_lost_the_folder_does_not_empty_a_file_in_which_another_is_just_writing(tmp_path: Path) -> None:
    path = tmp_path / lock.NAME
    with locked(Folder(tmp_path)):
        half = json.dumps(ELSEWHERE)[:20].encode()
        path.write_bytes(half)
    assert path.read_bytes()[:20] == half


def test_a_record_takes_the_place_of_another_without_an_empty_file_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_holder(Folder(tmp_path))
    sizes: list[int] = []
    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda handle, size: (truncate(handle, size), sizes.append(size))[0])
    with locked(Folder(tmp_path)):
        assert 0 not in sizes and at_work(Folder(tmp_path))
