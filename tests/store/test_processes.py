"""Who is alive: at once on this machine, by a pulse that changes elsewhere, never by comparing clocks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.store import attempts, processes
from harness.store.atomic import staged_name, sweep, write_json
from harness.store.layout import Folder
from harness.store.processes import Observer, abandoned, alive, identity

ELSEWHERE = {"host": "node-17", "machine": "another", "pid": 1, "started": 1}


def other_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_is_told_from_another_with_the_same_number() -> None:
    record = identity()
    assert record["user"] and record["host"] and alive(record) is True
    assert alive({**record, "started": record["started"] - 1}) is False
    assert alive({**record, "pid": 2**22 + 1}) is False


def test_of_another_host_container_or_boot_nothing_is_known_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    record = identity()
    for changes in ({"host": "node-17"}, {"machine": "another"}, {"pid_namespace": "pid:[1]"}):
        assert alive({**record, **changes}) is None
    assert alive({}) is None
    # This machine before it was started again; two that share only a name cannot be told from that.
    assert alive({**record, "boot": "earlier"}) is (False if record["machine"] else None)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_elsewhere_a_pulse_that_changes_is_alive_and_one_that_stands_still_for_the_lease_is_dead() -> None:
    clock = Clock()
    observer = Observer(clock)
    for beat in range(100):
        assert observer.alive("a", ELSEWHERE, b"%d" % beat)
        clock.now += processes.LEASE_SECONDS - 1
    assert observer.beating("a")
    assert observer.alive("a", ELSEWHERE, b"99")
    clock.now += 1
    assert not observer.alive("a", ELSEWHERE, b"99")
    assert observer.alive("b", ELSEWHERE, b"")  # seen for the first time: not dead yet
    assert observer.alive("a", ELSEWHERE, b"100")  # it was only slow; what it holds is fenced


def test_here_a_dead_process_is_dead_at_once_and_a_suspended_one_after_the_lease() -> None:
    clock = Clock()
    observer = Observer(clock)
    process = other_process()
    record = {**identity(), "pid": process.pid, "started": processes.process_start(process.pid)}
    assert observer.alive("a", record, b"1")
    clock.now += processes.LEASE_SECONDS
    assert not observer.alive("a", record, b"1")
    assert observer.alive("a", record, b"2")
    process.kill()
    process.wait()
    assert not observer.alive("a", record, b"3")


def test_an_attempt_has_a_pulse_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BEAT_SECONDS", 0.01)
    others = set(threading.enumerate())
    state = Folder(tmp_path).state("s")
    attempt = attempts.begin(state, {})
    first = attempts.read_pulse(state, 0)
    assert len(first) == processes.WIDTH
    while (later := attempts.read_pulse(state, 0)) == first:
        pass
    assert len(later) == processes.WIDTH  # written over itself
    attempt.finish("trained")
    ended = attempts.read_pulse(state, 0)
    assert processes.quiet_seconds(ended) is not None
    assert not set(threading.enumerate()) - others


def test_a_foreign_attempt_is_waited_for_while_its_pulse_changes(tmp_path: Path) -> None:
    state, clock = Folder(tmp_path).state("s"), Clock()
    state.attempt(0).mkdir(parents=True)
    write_json(state.attempt(0) / "env.json", {"schema": 1, **ELSEWHERE})
    observer = Observer(clock)
    for beat in range(3):
        (state.attempt(0) / "pulse").write_text(str(beat))
        living = attempts.living_attempt(state, observer)
        assert living is not None and living["host"] == "node-17"
        clock.now += processes.LEASE_SECONDS - 1
    clock.now += 1
    assert attempts.living_attempt(state, observer) is None
    write_json(state.attempt(0) / "exit.json", {"schema": 1, "outcome": "trained"})
    assert attempts.living_attempt(state) is None


def test_only_what_a_dead_process_of_this_machine_left_is_swept(tmp_path: Path) -> None:
    dead = other_process()
    started = processes.process_start(dead.pid)
    dead.kill()
    dead.wait()
    mine = staged_name(tmp_path / "deep" / "mine.json")
    place = mine.name.split(".")[-3].split("-")[2]
    names = {
        f".a.json.{dead.pid}-{started}-{place}.0123abcd.tmp": True,
        f".1024.{dead.pid}-{started}-{place}.0123abcd.tmp": True,
        f".b.json.{os.getpid()}-1-{place}.0123abcd.tmp": True,  # the number was used again
        mine.name: False,
        f".a.json.{dead.pid}-{started}-anotherplace.0123abcd.tmp": False,
        ".of-some-other-program.tmp": False,
        "result.json": False,
    }
    mine.parent.mkdir()
    for name in names:
        if name.startswith(".1024"):
            (mine.parent / name / "model").mkdir(parents=True)
        else:
            (mine.parent / name).write_text("half")
    assert {name: abandoned(name) for name in names} == names
    assert {path.name for path in sweep(tmp_path)} == {name for name, dead in names.items() if dead}
    assert {path.name for path in mine.parent.iterdir()} == {name for name, dead in names.items() if not dead}
