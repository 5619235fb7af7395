"""One suite for every executor: whatever runs the work, this holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.launch.executor import DebugExecutor, Executor, Job
from harness.launch.local import LocalExecutor
from harness.launch.progress import Silent
from harness.launch.queue import Queue
from harness.launch.stop import Stop
from harness.launch.work import Failure, Result, Work
from harness.launch.worker import load_perform
from harness.store import attempts, processes
from harness.store.atomic import read_json_lines, write_json
from harness.store.layout import Folder

STUB = "stub_work:perform"


class Recorder(Silent):
    """Keeps what an executor tells."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.ends: dict[str, Result] = {}
        self.reports: list[Mapping[str, Any]] = []
        self.waited: list[str] = []
        self.retried: list[tuple[str, str, int]] = []
        self.waited_for: subprocess.Popen[bytes] | None = None

    def started(self, item: Work) -> None:
        self.starts.append(item.id)

    def progress(self, item: Work, fields: Mapping[str, Any]) -> None:
        self.reports.append(fields)

    def settled(self, item: Work, result: Result) -> None:
        self.ends[item.id] = result

    def waiting(self, item: Work, elsewhere: Mapping[str, Any]) -> None:
        self.waited.append(item.id)
        if self.waited_for is not None:  # it ends now, and its parent collects it
            self.waited_for.kill()
            self.waited_for.wait()

    def retrying(self, item: Work, failure: Failure, time: int, of: int) -> None:
        self.retried.append((item.id, failure.kind, time))


@pytest.fixture(params=["debug", "local"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return DebugExecutor(load_perform(STUB)) if request.param == "debug" else LocalExecutor(2, 1, STUB)


def train(state: str, needs: str | None, tokens: int = 10, **detail: Any) -> Work:
    return Work("train", state, needs, tokens, state, {"needs": needs, **detail})


def evaluate(state: str) -> Work:
    return Work("evaluate", state, state, 0, f"evaluate {state}")


def base(state: str = "base") -> Work:
    return Work("base", state, None, 0, state)


def do(executor: Executor, root: Path, items: list[Work], **there: Any) -> tuple[Queue, Recorder]:
    recorder = Recorder()
    return do_with(recorder, executor, root, items, **there), recorder


def do_with(recorder: Recorder, executor: Executor, root: Path, items: list[Work], **there: Any) -> Queue:
    queue = Queue(items, **there)
    with Stop() as stop:
        executor.run(Job(Folder(root), queue, {}), recorder, stop)
    return queue


def outcomes(queue: Queue) -> dict[str, str]:
    return {name: result.outcome for name, result in queue.results.items()}


def log(root: Path) -> list[tuple[str, str]]:
    return [(line["what"], line["id"]) for line in read_json_lines(root / "log.jsonl")]


def test_parents_end_before_their_children_start(executor: Executor, tmp_path: Path) -> None:
    items = [train("leaf", "trunk"), train("other", "trunk"), evaluate("leaf"), train("trunk", "base"), base()]
    queue, _ = do(executor, tmp_path, items)
    assert set(outcomes(queue).values()) == {"prepared", "trained", "evaluated"}
    lines = log(tmp_path)
    for child, parent in [("train:leaf", "train:trunk"), ("train:trunk", "base:base"), ("evaluate:leaf", "train:leaf")]:
        assert lines.index(("end", parent)) < lines.index(("start", child))


def test_a_failure_takes_its_descendants_and_nothing_else(executor: Executor, tmp_path: Path) -> None:
    items = [
        *(base(), train("bad", "base", end="error"), train("below", "bad"), evaluate("below")),
        *(train("good", "base"), evaluate("good")),
    ]
    queue, _ = do(executor, tmp_path, items)
    assert outcomes(queue) == {
        "base:base": "prepared",
        "train:bad": "failed",
        "train:below": "blocked",
        "evaluate:below": "blocked",
        "train:good": "trained",
        "evaluate:good": "evaluated",
    }
    failure = queue.results["train:bad"].failure
    assert failure is not None and failure.kind == "error" and "a number that cannot be" in failure.error
    record = attempts.read_exit(Folder(tmp_path).state("bad"), 0)
    assert record is not None and record["outcome"] == "failed" and record["failure"] == "error"


def test_below_a_diverged_state_nothing_is_trained_and_nothing_has_failed(executor: Executor, tmp_path: Path) -> None:
    queue, _ = do(executor, tmp_path, [base(), train("nan", "base", end="diverged"), train("below", "nan")])
    assert outcomes(queue)["train:nan"] == "diverged"
    assert outcomes(queue)["train:below"] == "unreachable"


def test_states_that_are_there_are_started_from(executor: Executor, tmp_path: Path) -> None:
    do(executor, tmp_path, [base()])
    queue, recorder = do(executor, tmp_path, [train("leaf", "base"), evaluate("leaf")], available={"base"})
    assert outcomes(queue) == {"train:leaf": "trained", "evaluate:leaf": "evaluated"}
    assert recorder.starts == ["train:leaf", "evaluate:leaf"]


def test_progress_is_passed_on(executor: Executor, tmp_path: Path) -> None:
    _, recorder = do(executor, tmp_path, [base(), train("leaf", "base", steps=3)])
    assert [report["tokens"] for report in recorder.reports if report["segment"] == "leaf"] == [1, 2, 3]


def test_a_stop_signal_lets_running_work_checkpoint_and_starts_nothing_more(executor: Executor, tmp_path: Path) -> None:
    items = [base(), train("long", "base", steps=200, pause=0.05), train("after", "long")]
    timer = threading.Thread(target=signal_when_started, args=(tmp_path, "train:long", signal.SIGUSR2))
    timer.start()
    queue, _ = do(executor, tmp_path, items)
    timer.join()
    assert outcomes(queue) == {"base:base": "prepared", "train:long": "stopped"}
    assert ("start", "train:after") not in log(tmp_path)
    (event,) = attempts.read_events(Folder(tmp_path).state("long"))
    assert event["kind"] == "stopped" and event["tokens"] < 200, "at a step, and not at its last one"


def signal_when_started(root: Path, name: str, number: int) -> None:
    while ("start", name) not in log(root):
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(os.getpid(), number)


def test_a_state_at_which_another_process_works_is_waited_for(executor: Executor, tmp_path: Path) -> None:
    state = Folder(tmp_path).state("leaf")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    attempt = attempts.begin(state, {})
    env = {"schema": 1, **attempts.process_identity(), "pid": other.pid}
    env["started"] = processes.process_start(other.pid)
    write_json(attempt.folder / "env.json", env)
    recorder = Recorder()
    recorder.waited_for = other
    queue = do_with(recorder, executor, tmp_path, [base(), train("leaf", "base")])
    assert recorder.waited == ["train:leaf"]
    assert outcomes(queue)["train:leaf"] == "trained"
    assert state.attempt_numbers() == [0, 1]


def test_what_the_work_prints_lies_in_its_attempt(tmp_path: Path) -> None:
    do(LocalExecutor(1, 1, STUB), tmp_path, [base(), train("leaf", "base"), evaluate("leaf")])
    assert (Folder(tmp_path).state("leaf").attempt(0) / "stdout").read_text() == "working on leaf\n"
    assert (Folder(tmp_path).state("leaf").root / "evaluate.stdout").read_text() == "working on leaf\n"


def test_a_worker_runs_the_code_of_its_controller_whatever_the_folder_holds_in_which_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "checkout" / "harness"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('other code')\n")
    monkeypatch.chdir(other.parent)
    queue, _ = do(LocalExecutor(1, 1, STUB), tmp_path / "results", [base()])
    assert outcomes(queue) == {"base:base": "prepared"}


def test_threads_are_fixed_before_a_worker_starts(tmp_path: Path) -> None:
    do(LocalExecutor(2, 3, STUB), tmp_path, [base(), train("leaf", "base")])
    env = attempts.read_env(Folder(tmp_path).state("leaf"), 0)
    assert env is not None and env["threads"] == "3"


def test_work_whose_worker_was_killed_goes_on_in_another_one(tmp_path: Path) -> None:
    items = [base(), train("dead", "base", end="die", once=True), train("below", "dead")]
    queue, recorder = do(LocalExecutor(1, 1, STUB), tmp_path, items)
    assert outcomes(queue) == {"base:base": "prepared", "train:dead": "trained", "train:below": "trained"}
    assert [(item, kind, time) for item, kind, time in recorder.retried] == [("train:dead", "killed", 1)]
    record = attempts.read_exit(Folder(tmp_path).state("dead"), 0)
    assert record is not None and record["failure"] == "killed" and "signal 9 (SIGKILL)" in record["error"]
    assert Folder(tmp_path).state("dead").attempt_numbers() == [0, 1]


def test_work_whose_workers_are_killed_again_and_again_fails_alone(tmp_path: Path) -> None:
    items = [
        *(base(), train("dead", "base", 99, end="die"), train("below", "dead")),
        *(train("one", "base", pause=0.2), train("two", "one"), train("three", "one")),
    ]
    queue, recorder = do(LocalExecutor(1, 1, STUB), tmp_path, items)
    failure = queue.results["train:dead"].failure
    assert failure is not None and failure.kind == "killed" and "signal 9 (SIGKILL)" in failure.error
    assert [time for _, _, time in recorder.retried] == [1, 2]
    assert Folder(tmp_path).state("dead").attempt_numbers() == [0, 1, 2]
    ended = outcomes(queue)
    assert ended["train:below"] == "blocked"
    assert {ended[f"train:{name}"] for name in ("one", "two", "three")} == {"trained"}


def test_after_a_full_disk_nothing_more_is_begun(tmp_path: Path) -> None:
    items = [base(), train("full", "base", 99, end="full"), train("below", "full"), train("other", "base")]
    queue, recorder = do(LocalExecutor(1, 1, STUB), tmp_path, items)
    failure = queue.results["train:full"].failure
    assert failure is not None and failure.kind == "disk" and "no space is left on the disk" in failure.error
    assert {outcomes(queue)[f"train:{name}"] for name in ("below", "other")} == {"blocked"}
    assert recorder.starts == ["base:base", "train:full"]


def test_a_worker_that_leaves_says_its_last_words(tmp_path: Path) -> None:
    queue, _ = do(LocalExecutor(1, 1, STUB), tmp_path, [base(), train("gone", "base", end="leave")])
    failure = queue.results["train:gone"].failure
    assert failure is not None and failure.kind == "crashed"
    assert "exit code 3" in failure.error and "cannot go on" in failure.error


def test_workers_do_not_outlive_a_killed_controller(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from test_executors import *\n"
        f"do(LocalExecutor(1, 1, STUB), Path({str(tmp_path)!r}), [train('long', None, steps=400, pause=0.05)])\n"
    )
    controller = subprocess.Popen([sys.executable, "-c", script])
    while ("start", "train:long") not in log(tmp_path):
        time.sleep(0.02)
    worker = read_json_lines(tmp_path / "log.jsonl")[0]["pid"]
    time.sleep(0.2)
    controller.kill()
    controller.wait()
    deadline = time.monotonic() + 5
    while processes.process_start(worker) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes.process_start(worker) is None
    assert [event["kind"] for event in attempts.read_events(Folder(tmp_path).state("long"))] == ["stopped"]
