"""Failures on the cluster: what is tried again with what, what is held and why, and what is never burnt."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.launch.slurm import people
from harness.launch.status import status
from harness.store import attempts, metrics, states, submissions
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from tests.slurm.cluster import Cluster
from tests.slurm.real import EVERY, SLOW, newest, pace, trunk, weights, write_real
from tests.slurm.studies import behave, ends, finished, in_queue, is_done, queue, starts, submit, words, write

EVAL = "eval: {at: [stable, end], max_length: 64, held_out: {window: 64, documents: 4}}\n"


def remedies(folder: Folder) -> list[dict[str, object]]:
    """What each try was given, in order, where it was given anything."""
    found = []
    for place in folder.all_submissions():
        elements = submissions.read_elements(place)
        found += [dict(element.remedy) for element in elements if element.items and element.remedy]
    return found


def test_out_of_gpu_memory_halves_the_micro_batch_and_says_so_in_the_attempt(cluster: Cluster, tmp_path: Path) -> None:
    """The GPU is played by the trainer of this test: it refuses more than 128 tokens in a forward pass."""
    study = write_real(tmp_path)
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    (folder.root / "gpu").write_text("128")
    submit(study, perform=SLOW, wait=True)
    assert set(words(folder).values()) == {"done"}
    assert remedies(folder)[0] == {"micro_batch": 128}
    env = attempts.read_env(trunk(folder), 1) or attempts.read_env(trunk(folder), 0)
    assert env is not None and env["numerics"]["micro_batch"] == 128
    plain = write_real(tmp_path / "plain")
    submit(plain, perform=SLOW, wait=True)
    rows, others = (metrics.read_steps(trunk(Folder(root / "results"))).rows for root in (tmp_path, tmp_path / "plain"))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in others]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=1e-5)


def test_too_little_memory_with_the_remedy_too_holds_all_that_would_run_there(cluster: Cluster, tmp_path: Path) -> None:
    study = write_real(tmp_path, seeds="[1, 2, 3]")
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    (folder.root / "gpu").write_text("64")  # half of 256 does not fit, either
    report, _ = submit(study, perform=SLOW, wait=True)
    assert set(words(folder).values()) == {"held"}
    logs = [
        line
        for place in folder.all_submissions()
        for index in range(len(submissions.read_elements(place)))
        for line in submissions.read_log(place, index)
    ]
    tried = [line["item"] for line in logs if line.get("failure") == "memory-gpu"]
    assert len(tried) == 2 and len(set(tried)) == 1, "the canary alone, as it was and with the remedy"
    failures = {run.failure.kind for run in report.ended.runs if run.failure is not None}
    assert failures <= {"oom_gpu", "group", "parent"} and "oom_gpu" in failures


def test_equal_early_failures_hold_the_rest_of_the_array(cluster: Cluster, tmp_path: Path) -> None:
    """Two trunks are the canary and its follower; then 22 decays start on 8 processors and all fail alike."""
    values = ", ".join(f"{0.02 * number:.2f}" for number in range(11))
    study = write(tmp_path, values=f"[{values}]")
    study.write_text(study.read_text().replace("control: more=0}", "allow: {default: [no-control]}}"))
    folder = Folder(tmp_path / "results")
    names = [f"{arm}/d{seed}" for arm in ("default", *(f"more={0.02 * at:g}" for at in range(11))) for seed in (1, 2)]
    behave(folder, {name: {"end": "error", "pause": 0.2, "steps": 1} for name in names})
    report, _ = submit(study, wait=True)
    tried = [name for name in starts(folder) if name.startswith("train:")]
    assert len(tried) - 2 < len(names), "the rest was not begun"
    held = [run for run in status(folder) if run.state == "held"]
    assert held and any("failed alike before their first checkpoint" in run.detail for run in held)
    assert report.ended.exit_code == 1
    behave(folder, {})
    people.retry(folder, [], None)
    submit(study, wait=True)
    assert set(words(folder).values()) == {"done"}


def test_a_budget_ends_what_runs_when_it_is_used_up_and_more_of_it_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """Jobs without a GPU count as one: 0.002 hours are 7 seconds of one job."""
    study = write_real(tmp_path, more="budget: {gpu_hours: 0.002}\n")
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    pace(folder, 0.5)
    submit(study, perform=SLOW)
    cluster.wait_for(lambda: newest(trunk(folder)) >= EVERY, "a first checkpoint", 60)
    time.sleep(3)
    report, _ = submit(study, perform=SLOW)
    assert report.ticked is not None and {held.kind for held in report.ticked.held.values()} <= {"budget", "parent"}
    finished(cluster)
    assert set(words(folder).values()) & {"held", "stopped", "lost", "waiting"}
    over, _ = submit(study, perform=SLOW)
    assert over.ended.exit_code == 1 and in_queue() == 0
    said = [run.failure.error for run in over.ended.runs if run.failure is not None]
    assert any("budget.gpu_hours: 0.002" in text for text in said)
    pace(folder, 0)
    submit(write_real(tmp_path, more="budget: {gpu_hours: 1}\n"), perform=SLOW, wait=True)
    assert set(words(folder).values()) == {"done"} and len(weights(folder)) == 2


def test_a_run_without_a_step_is_silent_though_its_job_runs(cluster: Cluster, tmp_path: Path) -> None:
    study = write_real(tmp_path)
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    pace(folder, 0.1)
    submit(study, perform=SLOW)
    cluster.wait_for(lambda: set(words(folder).values()) == {"training"}, "training", 60)
    plan = read_json(folder.plan_json)
    assert plan["silent_after"] == 60
    write_json(folder.plan_json, {**plan, "silent_after": 2})  # a study can declare no less than a minute
    pace(folder, 8)
    cluster.wait_for(lambda: set(words(folder).values()) == {"silent"}, "silence", 30)
    assert any(row.state == "RUNNING" for row in queue().tasks.values())
    pace(folder, 0)
    finished(cluster, 120)
    assert set(words(folder).values()) == {"done"}


def test_one_tracked_run_each_however_often_its_job_was_taken_back(cluster: Cluster, tmp_path: Path) -> None:
    study = write_real(tmp_path, more=f"{EVAL}track: {{wandb: {{project: x, mode: offline}}}}\n")
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    pace(folder, 0.1)
    submit(study, perform=SLOW)
    for number in (1, 2):
        cluster.wait_for(lambda number=number: newest(trunk(folder)) >= number * EVERY, "a checkpoint", 60)  # type: ignore[misc]
        env = attempts.living_attempt(trunk(folder))
        assert env is not None
        cluster.command("scontrol", "requeue", str(env["slurm"]["job"]))
    finished(cluster, 150)
    assert set(words(folder).values()) == {"done"} and len(trunk(folder).attempt_numbers()) == 3
    written = sorted(path.name.rpartition("-")[2] for path in folder.root.rglob("offline-run-*") if path.is_dir())
    assert len(written) == len(set(written)) == 3, "a run for each and one for the study, by one id"
    assert ends(submit(study, perform=SLOW)[0]) == dict.fromkeys(words(folder), "done")


def test_a_child_looks_at_its_parent_itself_and_an_altered_one_is_made_again(cluster: Cluster, tmp_path: Path) -> None:
    study = write_real(tmp_path)
    folder = Folder(tmp_path / "results")
    folder.root.mkdir()
    pace(folder, 0.05)
    submit(study, perform=SLOW)
    cluster.wait_for(lambda: newest(trunk(folder)) >= EVERY, "a first checkpoint", 60)
    cluster.command("scontrol", "update", "partitionname=low", "state=down")  # what runs goes on, nothing begins
    cluster.wait_for(lambda: is_done(folder, trunk(folder).id), "the trunk", 60)
    done = states.verify_state(trunk(folder))
    assert done is not None
    weights_file = trunk(folder).checkpoints / str(done.checkpoint) / "model" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    cluster.command("scontrol", "update", "partitionname=low", "state=up")
    finished(cluster, 150)
    said = [
        line
        for place in folder.all_submissions()
        for index in range(len(submissions.read_elements(place)))
        for line in submissions.read_log(place, index)
        if line.get("outcome") == "blocked"
    ]
    assert said and all("damaged" in line["error"] for line in said)
    assert set(words(folder).values()) == {"done"}, "the last job has the trunk trained again, and what waits for it"
    alone = write_real(tmp_path / "alone")
    submit(alone, perform=SLOW, wait=True)
    assert weights(folder) == weights(Folder(tmp_path / "alone" / "results"))
