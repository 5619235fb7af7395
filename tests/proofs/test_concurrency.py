"""Two of everything at once, and whatever may be killed: nothing lost, nothing done twice. With real processes.

| what                        | fault                                   | what holds                                   |
|-----------------------------|-----------------------------------------|----------------------------------------------|
| results folder              | a second `ablate run`                   | leaves with 2 at once and says who; `--wait` |
|                             | the first is killed                     | the next one has the folder at once          |
|                             | a holder on another machine, by hand    | alive while its pulse changes, else dead     |
| state                       | worker suspended, taken over, continued | fenced: stops before it writes               |
| worker                      | killed by a signal (out of memory)      | goes on from its checkpoint in a new worker  |
|                             | its launcher is killed                  | checkpoints and leaves: no orphan            |
| token store                 | two studies at once                     | whole, equal to one that was built alone     |
|                             | killed while it is written              | is not believed; what is left is swept       |
| `ablate run`                | Ctrl-C, SIGTERM, closed terminal        | checkpoints, says how to go on               |
|                             | Ctrl-C twice                            | leaves at once                               |
|                             | nohup, then a closed terminal           | goes on                                      |
| stdout                      | closed by its reader                    | no traceback                                 |
| disk                        | full at each kind of write              | test_full_disk                               |
| results folder, token store | read-only, of another user, moved       | test_other_places                            |
| every file                  | written by a newer version              | test_newer_versions                          |
| clocks                      | set back and forth                      | test_other_places                            |
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.data.token_store import is_complete
from harness.launch import verify
from harness.store import attempts, processes
from harness.store.layout import Folder, StateFolder
from tests.proofs.ablate import ablate, command, disagreements, environment, events, final_weights, updates
from tests.proofs.small import write_small

LONG = 204_800  # tokens of the first stage: some seconds, in which every test finds it in the middle
LEASE = 3


def write_long(folder: Path) -> Path:
    return write_small(folder, LONG, evaluated=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """The long study's folder after a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("reference")
    ablate(store, "run", write_long(root), "-o", root / "out")
    return root / "out"


@pytest.fixture
def running(store: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `ablate`; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
        plain: dict[str, object] = {"env": environment(store), "stdin": subprocess.DEVNULL, "text": True}
        plain |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen(command(*arguments), **{**plain, **options})  # type: ignore[call-overload]
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def in_training(folder: Path, after: int = 0) -> StateFolder | None:
    """A state that is not done and has a checkpoint past `after` tokens."""
    for state in Folder(folder).all_states():
        if not state.done.exists() and max(state.checkpoint_tokens(), default=0) > after:
            return state
    return None


def worker_of(state: StateFolder) -> int:
    env = attempts.read_env(state, state.attempt_numbers()[-1])
    assert env is not None
    return int(env["pid"])


def is_told(process: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a stopped process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    waiting = next(line.split()[1] for line in lines if line.startswith("ShdPnd:"))
    return bool(int(waiting, 16) >> (number - 1) & 1)


def check_equal(folder: Path, reference: Path) -> None:
    """What came out is what comes out undisturbed, and every update was computed as it was the first time."""
    assert final_weights(folder) == final_weights(reference)
    assert disagreements(folder) == []
    assert verify.damage(Folder(folder))[1] == []


@pytest.mark.slow
def test_a_second_run_is_told_who_holds_the_folder_and_has_it_once_the_first_is_killed(
    tmp_path: Path, store: Path, reference: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    study, folder = write_long(tmp_path), tmp_path / "out"
    first = running("run", study, "-o", folder)
    until(lambda: in_training(folder), first)
    said = ablate(store, "run", study, "-o", folder, code=2)
    assert re.search(rf"\w+@\S+, process {first.pid}, since \d{{4}}-\d\d-\d\d", said) and "--wait" in said
    assert len(said.splitlines()) == 1

    waiting = running("run", study, "-o", folder, "--wait")
    assert waiting.stdout is not None
    assert "waiting for the `ablate`" in waiting.stdout.readline()
    state = in_training(folder)
    assert state is not None
    worker, reached = worker_of(state), max(state.checkpoint_tokens())
    first.kill()
    until(lambda: processes.process_start(worker) is None, seconds=20)  # no orphan goes on training
    rest, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0, rest
    resumed = [event["tokens"] for event in events(folder)[state.id] if event["kind"] == "attempt_started"]
    assert resumed[-1] >= reached > 0
    check_equal(folder, reference)
    # What was computed twice is at most what came after the last checkpoint.
    assert sum(updates(folder).values()) <= sum(updates(reference).values()) + 2560 // 256


@pytest.mark.slow
def test_a_worker_that_was_suspended_and_taken_over_stops_before_it_writes(
    tmp_path: Path, store: Path, reference: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    study, folder = write_long(tmp_path), tmp_path / "out"
    short = {**environment(store), "PYTHONPATH": str(short_lease(tmp_path))}
    first = running("run", study, "-o", folder, env=short)
    until(lambda: in_training(folder), first)
    state = in_training(folder)
    assert state is not None
    zombie = worker_of(state)
    os.kill(zombie, signal.SIGSTOP)
    try:
        first.kill()
        first.wait()
        second = running("run", study, "-o", folder, env=short)
        said, _ = second.communicate(timeout=300)
        assert second.returncode == 0, said
        assert "waiting for" in said and f"process {zombie}" in said
        before = {path: path.stat().st_mtime_ns for path in state.root.rglob("*") if path.is_file()}
    finally:
        os.kill(zombie, signal.SIGCONT)
    until(lambda: processes.process_start(zombie) is None, seconds=30)
    after = {path: path.stat().st_mtime_ns for path in state.root.rglob("*") if path.is_file()}
    old = state.attempt(0)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert all(path.is_relative_to(old) or path.name.startswith("train.std") for path in changed), changed
    ended = attempts.read_exit(state, 0)
    assert ended is not None and ended["outcome"] == "fenced"
    check_equal(folder, reference)


def short_lease(folder: Path) -> Path:
    """A folder for PYTHONPATH that shortens beats and lease in every process."""
    place = folder / "site"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(
        f"from harness.store import processes\nprocesses.BEAT_SECONDS, processes.LEASE_SECONDS = 0.2, {LEASE}\n"
    )
    return place


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_goes_on_from_its_checkpoint(
    tmp_path: Path, reference: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "out"
    process = running("run", write_long(tmp_path), "-o", folder)
    until(lambda: in_training(folder), process)
    state = in_training(folder)
    assert state is not None
    os.kill(worker_of(state), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "killed by signal 9 (SIGKILL)" in said and "1 of 2 retries" in said
    started = [event["tokens"] for event in events(folder)[state.id] if event["kind"] == "attempt_started"]
    assert started[1] > started[0]
    check_equal(folder, reference)


@pytest.mark.slow
def test_a_closed_terminal_and_two_interrupts(
    tmp_path: Path, store: Path, reference: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    """The terminal is a real one: closing it sends SIGHUP to the whole group, and output to it fails from then on."""
    study, folder = write_long(tmp_path), tmp_path / "out"
    controller, terminal = pty.openpty()
    process = running(
        *("run", study, "-o", folder),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(terminal)
    until(lambda: in_training(folder), process)
    state = in_training(folder)
    assert state is not None
    worker = worker_of(state)
    os.kill(worker, signal.SIGSTOP)  # so that it cannot come to its end before it is told to stop
    os.close(controller)
    until(lambda: is_told(worker, signal.SIGTERM), process)
    os.kill(worker, signal.SIGCONT)
    process.wait(timeout=60)
    until(lambda: processes.process_start(worker) is None, seconds=20)
    kinds = [event["kind"] for event in events(folder)[state.id]]
    assert kinds[-1] == "stopped" and "checkpoint" in kinds  # it wrote its checkpoint and left

    reached = max(state.checkpoint_tokens())
    process = running("run", study, "-o", folder)
    until(lambda: in_training(folder, after=reached), process)
    os.kill(worker_of(state), signal.SIGSTOP)  # it would take its time
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "to go on: ablate run" in said, said

    ablate(store, "run", study, "-o", folder)
    check_equal(folder, reference)


def test_what_was_ignored_when_it_began_stays_ignored() -> None:
    """`nohup ablate run`: the terminal may be closed."""
    script = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from harness.launch.stop import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    assert stop.signal is None\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.signal == signal.SIGTERM\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    """`ablate plan --json | head -c 1`, stdout closed, and stdout on a full disk."""
    study = write_small(tmp_path)
    call = command("plan", study, "-o", tmp_path / "out", "--json")
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE and errors == ""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr and "No space left" in done.stderr


# --- the token store that studies share


def tokens_of(cache: Path) -> dict[str, bytes]:
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in sorted(cache.glob("tokens/*/*"))
        if path.name != "meta.json"
    }


@pytest.mark.slow
def test_two_studies_that_tokenize_the_same_at_once_leave_one_whole_store(
    tmp_path: Path, store: Path, reference: Path, running: Callable[..., subprocess.Popen[str]]
) -> None:
    cache, out = tmp_path / "cache", {}
    for name in ("a", "b"):
        study = write_small(tmp_path / name, evaluated=False)
        out[name] = running("run", study, "-o", tmp_path / name / "out", "--jobs", "1", env=environment(cache))
    for process in out.values():
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert final_weights(tmp_path / "a" / "out") == final_weights(tmp_path / "b" / "out")
    assert all(is_complete(path) for path in (cache / "tokens").iterdir()) and tokens_of(cache) == tokens_of(store)
    assert not list(cache.rglob("*.tmp"))


def test_a_tokenization_that_is_killed_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    """Killed in the middle of a source; the next one sweeps what it left, and not what a living process is writing."""
    entry, cache = tmp_path / "cache" / "tokens" / "e", tmp_path / "cache"
    script = (
        "import os, sys, time; from pathlib import Path; from harness.data.cache import build_once\n"
        "def fill(folder):\n"
        "    (folder / 'tokens.bin').write_bytes(b'half'); print('begun', flush=True); time.sleep(60)\n"
        f"build_once(Path({str(entry)!r}), lambda path: (path / 'meta.json').exists(), fill)\n"
    )
    living, dead = (subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2))
    for process in (living, dead):
        assert process.stdout is not None
        process.stdout.readline()
    dead.kill()
    dead.wait()
    try:
        assert not entry.exists() and len(list(cache.rglob("*.tmp"))) == 2
        from harness.data.cache import build_once

        def whole(path: Path) -> bool:
            return (path / "meta.json").exists()

        build_once(entry, whole, lambda folder: void((folder / "meta.json").write_text("{}")))
        assert whole(entry)
        left = list(cache.rglob("*.tmp"))
        assert len(left) == 1 and f".{living.pid}-" in left[0].name
    finally:
        living.kill()
        living.wait()
    shutil.rmtree(cache)


def void(_: object) -> None: ...
