"""Ticks that are killed anywhere, and two at once: nothing is lost, nothing is submitted twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.launch import prepare
from harness.launch.slurm import client, seen
from harness.launch.slurm.submitit_executor import Submitter
from harness.store import atomic
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.slurm.cluster import Cluster
from tests.slurm.studies import ablate, finished, queue, shim, starts, submit, words, write


class Points:
    """Counts the places at which a tick can be killed, and kills this process at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.passed = 0

    def __call__(self, *arguments: Any) -> None:
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def in_a_fork(work: Callable[[], Any]) -> int:
    """Start `work` in a copy of this process; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except UserError:
        code = 2
    finally:
        os._exit(code)


def killed(study: Path, fatal: int) -> bool:
    """Submit, and die before the `fatal`th write or call of sbatch. Whether it came to that."""

    def work() -> None:
        points = Points(fatal)
        atomic.before_write = points
        call = Submitter.submit_module

        def submit_module(self: Submitter, module: str, arguments: list[str]) -> str:
            points()
            return call(self, module, arguments)

        Submitter.submit_module = submit_module  # type: ignore[method-assign]
        submit(study)

    _, status = os.waitpid(in_a_fork(work), 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def queued(folder: Folder) -> tuple[Counter[str], int]:
    """How often each item of work is in the queue, and how many last jobs."""
    live = seen.look(folder, client.look(folder)).live
    items: Counter[str] = Counter()
    for one in live:
        for index in one.live if one.intent.kind == "work" else ():
            items.update(one.elements[index].ids)
    return items, sum(one.intent.kind == "close" for one in live)


def test_a_tick_that_is_killed_anywhere_is_made_good_by_the_next(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    root, planned = tmp_path / "results", tmp_path / "planned"
    prepare.resolved_plan(prepare.load(study), Folder(planned), True, print)
    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    fatal, undisturbed = 0, None
    while True:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(planned, root)
        died = killed(study, fatal)
        submit(study)
        items, closing = queued(Folder(root))
        assert set(items.values()) == {1} and closing == 1, f"killed at place {fatal}"
        assert len(items) == 1 + 2 + 6
        names = [row.name for row in queue().tasks.values() if row.active]
        ours = len(items) + 1
        assert len(names) <= ours, f"killed at place {fatal}: jobs that nobody knows of"
        cluster.command("scancel", "--full", "--user", os.environ.get("USER", "root"))
        cluster.wait_for(lambda: not any(row.active for row in queue().tasks.values()), "an empty queue")
        if not died:
            undisturbed = fatal
            break
        fatal += 1
    assert undisturbed is not None and undisturbed > 15, "so many places there are at least"


def test_killed_between_sbatch_and_the_note_of_its_answer_the_study_is_done_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    study = write(tmp_path)

    def work() -> None:
        call = Submitter.submit_module

        def submit_module(self: Submitter, module: str, arguments: list[str]) -> str:
            call(self, module, arguments)
            os.kill(os.getpid(), signal.SIGKILL)
            return ""

        Submitter.submit_module = submit_module  # type: ignore[method-assign]
        submit(study)

    for _ in range(3):
        os.waitpid(in_a_fork(work), 0)
    submit(study, wait=True)
    folder = Folder(tmp_path / "results")
    assert set(words(folder).values()) == {"done"}
    assert set(starts(folder).values()) == {1}


def test_two_at_once_submit_everything_once(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    prepare.resolved_plan(prepare.load(study), Folder(tmp_path / "results"), True, print)
    begin = time.monotonic() + 1

    def work() -> None:
        time.sleep(max(0.0, begin - time.monotonic()))
        submit(study)

    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in [in_a_fork(work) for _ in range(4)]]
    assert set(codes) <= {0, 2} and 0 in codes, "one is at work, and the others may be told so"
    finished(cluster)
    folder = Folder(tmp_path / "results")
    assert set(words(folder).values()) == {"done"}
    assert set(starts(folder).values()) == {1}


def test_a_controller_that_does_not_answer_changes_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
    with monkeypatch.context() as patch:
        shim(patch, tmp_path / "bin", "squeue", f"echo '{said}' >&2; exit 1")
        with pytest.raises(UserError, match=r"`squeue` failed: .*Unable to contact"):
            submit(write(tmp_path))
    assert not Folder(tmp_path / "results").all_submissions()
    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    report, _ = submit(write(tmp_path))
    assert set(words(report.folder).values()) == {"queued"}
    with monkeypatch.context() as patch:
        shim(patch, tmp_path / "bin", "squeue", f"echo '{said}' >&2; exit 1")
        shown = " ".join(ablate("status", report.folder.root).split())
        assert "without a look at the queue: `squeue` failed" in shown and "6 waiting" in shown
        assert "Unable to contact" in json.loads(ablate("status", report.folder.root, "--json"))["slurm"]
