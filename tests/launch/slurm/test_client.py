"""Slurm's output, as a real one with accounting printed it (`tests/slurm/recorded`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.launch.slurm import client
from harness.launch.slurm.client import Queue, parse, parse_accounted
from harness.launch.slurm.submit import is_limit
from harness.launch.slurm.submitit_executor import Submitter, environment_without_slurm
from harness.store.layout import Folder

RECORDED = Path(__file__).parents[2] / "slurm" / "recorded"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def test_a_queue_by_task() -> None:
    queue = Queue(parse(recorded("squeue")))
    active = {key for key, row in queue.tasks.items() if row.active}
    assert active == {("5", 0), ("6", 5), ("6", 6), ("6", 7), ("6", 9)}
    assert queue.tasks["4", 2].reason == "JobLaunchFailure" and queue.tasks["2", 0].state == "CANCELLED"
    assert queue.job_named("wrap") in {"2", "4", "1", "5", "6"} and queue.job_named("other") is None


def test_accounts_with_ranges_of_tasks_that_never_started() -> None:
    found = parse_accounted(recorded("sacct"))
    assert found["4", 1] == "FAILED" and found["4", 3] == "CANCELLED" and found["5", 0] == "RUNNING"
    assert {key for key in found if key[0] == "6"} == {("6", 5), ("6", 6), ("6", 7), ("6", 9)}


def test_a_job_whose_name_holds_the_separator() -> None:
    (row,) = parse("7|N/A|PENDING|Priority|a|b c\n")
    assert (row.job, row.index, row.name) == ("7", 0, "a|b c")


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("submit-limit", True),
        ("submit-limit-qos", True),
        ("account", False),
        ("partition", False),
        ("array", False),
        ("gres", False),
    ],
)
def test_a_refusal_because_of_too_many_jobs_is_told_from_the_others(name: str, limit: bool) -> None:
    assert is_limit(recorded(name)) is limit


def test_without_slurm_one_paragraph_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(client.Unreachable, match="`squeue` is not on this machine"):
        client.look(Folder(tmp_path))


def program(patch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    """Put a script of sh in the place of one of Slurm's programs."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_look_sees_all_jobs_whatever_a_person_has_set_for_squeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that a look leaves out counts as lost, and is submitted a second time."""
    folder = Folder(tmp_path / "results")
    folder.submission(0).root.mkdir(parents=True)
    for name, value in (("SQUEUE_PARTITION", "gpu"), ("SQUEUE_STATES", "R"), ("SLURM_CLUSTERS", "b"), ("USER", "ada")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOGNAME", "ada")
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    told = tmp_path / "told"
    program(monkeypatch, tmp_path, "squeue", f'(echo "$@"; env) > {told}; echo "7|N/A|RUNNING|None|tiny-0"')
    assert client.look(folder).tasks["7", 0].active
    arguments, *variables = told.read_text().splitlines()
    assert f"--user={mine},{mine + 1}" in arguments.split(), "the jobs of whoever has submitted for the folder"
    assert not [line for line in variables if line.startswith(("SQUEUE_", "SLURM_CLUSTERS"))]


def test_what_a_person_has_set_for_sbatch_is_not_used_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert environment_without_slurm() == {"SBATCH_ACCOUNT": "ours"}
    assert not {"SBATCH_ACCOUNT", "SLURM_JOB_ID"} & set(os.environ)


def test_the_id_of_a_job_is_that_of_slurms_own_line_whatever_a_site_prints_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, tmp_path, "sbatch", "echo your last job 99 was fine; echo Submitted batch job 12; echo job 13")
    assert Submitter(tmp_path / "submission", {}).submit_module("module", []) == "12"


def test_a_refusal_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(monkeypatch, tmp_path, "sbatch", "echo sbatch: error: no such partition >&2; exit 1")
    with pytest.raises(Exception, match="no such partition"):
        Submitter(tmp_path / "submission", {}).submit_module("module", [])
    assert capsys.readouterr().err == ""
