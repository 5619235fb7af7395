"""Slurm's output, as a real one with accounting printed it (`tests/slurm/recorded`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch.slurm import client
from harness.launch.slurm.client import Queue, parse, parse_accounted
from harness.launch.slurm.submit import is_limit

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
        client.look()
