"""Whatever a cluster does to a run, its weights are those of a run that was left alone, and little work is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.launch import prepare, run
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.store import attempts, submissions
from harness.store.layout import Folder
from tests.slurm.cluster import NODES, Cluster, children
from tests.slurm.real import (
    EVERY,
    SLOW,
    attempts_of,
    copied,
    lost_tokens,
    newest,
    pace,
    trunk,
    weights,
    write_real,
)
from tests.slurm.studies import finished, queue, submit

PACE = 0.1


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, token_store: Path) -> tuple[Path, dict[str, str]]:
    """A study whose results folder is planned and has nothing else, and the weights of its undisturbed runs."""
    root = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(token_store))
        study = write_real(root)
        prepare.resolved_plan(prepare.load(study), Folder(root / "planned"), True, print)
        done = run.run(Options(study, root / "alone", executor="debug"), Silent())
    assert done.ended.exit_code == 0
    return root, weights(done.folder)


def started(cluster: Cluster, planned: Path, to: Path, launch: str | None = None) -> Folder:
    """Submitted, and training its trunk past a first checkpoint."""
    folder = copied(planned / "planned", to / "results", PACE)
    submit(write_real(to) if launch is None else write_real(to, launch), perform=SLOW)
    cluster.wait_for(lambda: newest(trunk(folder)) >= EVERY, "a first checkpoint", 60)
    return folder


def task(folder: Folder) -> str:
    """Slurm's id of the job that trains the trunk."""
    env = attempts.living_attempt(trunk(folder))
    assert env is not None
    return str(env["slurm"]["job"])


def preempt(cluster: Cluster, folder: Folder) -> None:
    cluster.command("sbatch", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def requeue(cluster: Cluster, folder: Folder) -> None:
    cluster.command("scontrol", "requeue", task(folder))


def kill_child(cluster: Cluster, folder: Folder) -> None:
    env = attempts.living_attempt(trunk(folder))
    assert env is not None
    os.kill(int(env["pid"]), signal.SIGKILL)


def kill_step(cluster: Cluster, folder: Folder) -> None:
    """Everything that the job consists of on its node."""
    for pid in cluster.steps():
        for one in (pid, *children(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


@pytest.mark.parametrize("fault", [preempt, requeue, kill_child, kill_step])
def test_a_disturbed_run_ends_at_the_weights_of_one_that_was_left_alone(
    cluster: Cluster,
    planned: tuple[Path, dict[str, str]],
    tmp_path: Path,
    fault: Callable[[Cluster, Folder], None],
) -> None:
    folder = started(cluster, planned[0], tmp_path)
    fault(cluster, folder)
    finished(cluster, 150)
    assert weights(folder) == planned[1]
    begins = attempts_of(trunk(folder))
    assert len(begins) == 2 and begins[1]["tokens"] >= EVERY
    assert all(lost <= EVERY for lost in lost_tokens(trunk(folder)))
    assert (folder.report / "index.html").exists()


def test_an_orphan_of_a_dead_node_is_fenced_by_the_attempt_that_follows(
    cluster: Cluster, planned: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder = started(cluster, planned[0], tmp_path)
    pace(folder, 2.5)  # slurmctld takes half a minute to miss a node
    env = attempts.living_attempt(trunk(folder))
    assert env is not None
    node = env["slurm"]["node"]
    assert node in NODES
    cluster.kill_node(node)
    cluster.wait_for(lambda: len(attempts_of(trunk(folder))) == 2, "a second attempt", 90)
    os.kill(int(env["pid"]), 0)  # the orphan is alive, and trains
    assert attempts.read_exit(trunk(folder), 0) is None
    pace(folder, 0.15)
    finished(cluster, 150)
    assert weights(folder) == planned[1]
    left = attempts.read_exit(trunk(folder), 0)
    assert left is not None and left["outcome"] == "fenced"
    events = attempts.read_events(trunk(folder))
    second = next(at for at, event in enumerate(events) if event.get("attempt") == 1)
    assert not any(event["kind"] == "checkpoint" and event["attempt"] == 0 for event in events[second:])


def test_time_limits_shorter_than_a_run_make_a_chain_of_jobs_that_finishes_it(
    cluster: Cluster, planned: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    # Slurm may warn a minute early: between 20 and 80 seconds after the start, of the 100 that the trunk would take.
    limits = f"{{device: cpu, checkpoint_every: {EVERY}, time: 2m, slurm: {{signal_delay_s: 40}}}}"
    folder = copied(planned[0] / "planned", tmp_path / "results", 2)
    submit(write_real(tmp_path, limits), perform=SLOW)
    cluster.wait_for(lambda: len(attempts_of(trunk(folder))) == 2, "a second job", 120)
    pace(folder, 0)
    finished(cluster, 150)
    assert weights(folder) == planned[1]
    stopped = [event for event in attempts.read_events(trunk(folder)) if event["kind"] == "stopped"]
    assert [event["signal"] for event in stopped] == ["SIGUSR2"]
    assert lost_tokens(trunk(folder)) == [0], "told in time, it writes a checkpoint where it is"
    first = next(place for place in folder.all_submissions() if submissions.read_elements(place))
    assert any(line["kind"] == "requeue" for line in submissions.read_log(first, 0))
    assert queue().tasks
