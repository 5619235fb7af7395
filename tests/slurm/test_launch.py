"""Launching on a real Slurm: the tree, the last job, what a second call does, cancel, retry, what is held and why."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from harness.launch.slurm import people
from harness.store import submissions
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.slurm.cluster import Cluster
from tests.slurm.studies import (
    ablate,
    behave,
    ends,
    finished,
    in_queue,
    is_done,
    last_state,
    starts,
    submit,
    words,
    write,
)


def test_submits_the_whole_tree_and_returns_and_the_last_job_writes_the_report(
    cluster: Cluster, tmp_path: Path
) -> None:
    study = write(tmp_path)
    report, notes = submit(study)
    assert report.ended.exit_code == 0
    assert set(ends(report).values()) == {"queued"}
    assert any("calls of sbatch" in note for note in notes)
    finished(cluster)
    assert set(words(report.folder).values()) == {"done"}
    assert (report.folder.report / "index.html").exists()
    counts = starts(report.folder)
    assert set(counts.values()) == {1}
    assert len(counts) == 1 + 2 + 6  # the base, two trunks, three decays on each

    again, notes = submit(study)
    assert (again.ended.exit_code, starts(again.folder)) == (0, counts)
    assert again.ticked is not None and again.ticked.quiet


def test_waits_for_the_end_when_it_is_asked_to(cluster: Cluster, tmp_path: Path) -> None:
    report, _ = submit(write(tmp_path), wait=True)
    assert set(ends(report).values()) == {"done"}
    assert report.report is not None and report.report.exists()


def test_a_call_while_jobs_are_queued_submits_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    study = write(tmp_path)
    first, _ = submit(study)
    again, _ = submit(study)
    assert first.ticked is not None and again.ticked is not None
    assert first.ticked.submitted and not again.ticked.submitted
    assert len(list(first.folder.all_submissions())) == len(first.ticked.submitted) + 1
    cluster.command("scontrol", "update", "partitionname=low", "state=up")
    finished(cluster)
    assert set(starts(first.folder).values()) == {1}


def test_an_arm_that_is_added_is_all_that_is_submitted_and_one_that_is_removed_is_an_orphan(
    cluster: Cluster, tmp_path: Path
) -> None:
    report, _ = submit(write(tmp_path), wait=True)
    before = starts(report.folder)
    more, _ = submit(write(tmp_path, values="[0, 0.3, 0.6]"), wait=True)
    added = starts(more.folder) - before
    assert set(added) == {f"train:{last_state(more.folder, f'more=0.6/{seed}')}" for seed in ("d1", "d2")}
    fewer, _ = submit(write(tmp_path, values="[0]"), wait=True)
    assert starts(fewer.folder) == before + added
    assert words(fewer.folder)["more=0.3/d1"] == "orphan"
    assert is_done(fewer.folder, last_state(fewer.folder, "more=0.3/d1"))


def test_a_failed_canary_holds_its_group_and_retry_lets_it_go(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path, seeds="[1, 2, 3]")
    folder = Folder(tmp_path / "results")
    behave(folder, {f"default/d{seed}": {"at": 0, "end": "error"} for seed in (1, 2, 3)})
    submit(study, wait=True)
    assert set(words(folder).values()) <= {"held", "failed", "waiting"}
    trunks = {name: count for name, count in starts(folder).items() if name.startswith("train:")}
    assert list(trunks.values()) == [1], "only the canary was tried"
    behave(folder, {})
    people.retry(folder, [], None)
    submit(study, wait=True)
    assert set(words(folder).values()) == {"done"}
    assert sum(count for name, count in starts(folder).items() if name in trunks) == 2


def test_cancel_takes_jobs_and_what_waits_for_them_and_retry_brings_them_back(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    folder = Folder(tmp_path / "results")
    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    submit(study)
    some = people.cancel(folder, ["more=0.3/d1"])
    assert some.runs == 1
    assert words(folder)["more=0.3/d1"] == "cancelled"
    everything = people.cancel(folder, [])
    assert everything.tasks > 0
    cluster.command("scontrol", "update", "partitionname=low", "state=up")
    finished(cluster)
    assert starts(folder) == {}
    again, _ = submit(study, wait=True)
    assert set(words(folder).values()) == {"cancelled"}
    assert again.ended.exit_code == 1
    people.retry(folder, [], "cancelled")
    submit(study, wait=True)
    assert set(words(folder).values()) == {"done"}
    assert set(starts(folder).values()) == {1}


def test_a_failed_parent_leaves_no_child_in_the_queue(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    folder = Folder(tmp_path / "results")
    behave(folder, {"default/d1": {"end": "error"}})
    report, _ = submit(study, wait=True)
    assert in_queue() <= 1  # the last job, which waits for this process
    assert ends(report)["default/d1"] == "failed"
    assert {end for name, end in ends(report).items() if name != "default/d1"} == {"done"}
    failure = next(run.failure for run in report.ended.runs if run.run == "default/d1")
    assert failure is not None and "a number that cannot be" in failure.error
    assert starts(folder)[f"train:{last_state(folder, 'default/d1')}"] == 2  # unknown: once more


def test_a_diverged_run_is_a_result(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    behave(Folder(tmp_path / "results"), {"default/d1": {"end": "diverged"}})
    report, _ = submit(study, wait=True)
    assert ends(report)["default/d1"] == "diverged"
    assert report.ended.exit_code == 0


def test_the_budget_holds_what_it_does_not_reach(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path, more="budget: {gpu_hours: 1.0e-12}\n")
    with pytest.raises(UserError, match=r"more than its `budget\.gpu_hours"):
        submit(study)
    report, _ = submit(study, yes=True, wait=True)
    assert set(ends(report).values()) == {"done"}


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="`sbatch` is not on this machine"):
        submit(write(tmp_path))


def test_an_option_that_slurm_refuses_is_a_paragraph_and_nothing_is_left_behind(
    cluster: Cluster, tmp_path: Path
) -> None:
    study = write(tmp_path, launch="launch: {device: cpu, slurm: {partition: nowhere}}\n")
    said = ablate("run", study, "-o", tmp_path / "results", "--executor", "slurm", code=2)
    assert "sbatch refused a submission" in said and "nvalid partition" in said
    assert in_queue() == 0
    submit(write(tmp_path), wait=True)
    assert set(words(Folder(tmp_path / "results")).values()) == {"done"}


def test_a_person_can_submit_again_with_plain_sbatch(cluster: Cluster, tmp_path: Path) -> None:
    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    report, _ = submit(write(tmp_path))
    cluster.command("scancel", "--full", "--user", getpass.getuser())
    finished(cluster)
    cluster.command("scontrol", "update", "partitionname=low", "state=up")
    root = next(place for place in report.folder.all_submissions() if submissions.read_elements(place))
    assert starts(report.folder) == {}
    cluster.command("sbatch", str(root.sbatch))
    finished(cluster)
    assert [name.partition(":")[0] for name in starts(report.folder)][:1] == ["base"]
