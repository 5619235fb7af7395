"""Failure classes: each by its evidence, and what follows from it."""

from __future__ import annotations

from typing import Any

import pytest

from harness.launch.slurm.classes import POLICY, End, ends, judge, of_failure
from harness.store.submissions import Gone

ITEM = "train:s"


def started(node: str = "n1", restart: int = 0) -> dict[str, Any]:
    return {"kind": "started", "node": node, "restart": restart}


def began(at: int | None = None) -> dict[str, Any]:
    return {"kind": "began", "item": ITEM, "at": at}


def ended(outcome: str, **more: Any) -> dict[str, Any]:
    return {"kind": "ended", "item": ITEM, "outcome": outcome, **more}


def failed(failure: str, error: str = "x") -> dict[str, Any]:
    return ended("failed", failure=failure, error=error)


CASES: list[tuple[str, list[dict[str, Any]], Gone, str]] = [
    ("its own log: told to stop by Slurm", [ended("stopped", signal="SIGTERM")], Gone("PREEMPTED"), "preempted"),
    ("Slurm's word where the process had none", [], Gone("PREEMPTED"), "preempted"),
    (
        "a new checkpoint before the limit",
        [ended("stopped", signal="SIGUSR2", at=9)],
        Gone("TIMEOUT"),
        "timeout_progress",
    ),
    ("no new checkpoint before the limit", [ended("stopped", signal="SIGUSR2", at=None)], Gone(""), "no_progress"),
    ("the node is gone", [], Gone("NODE_FAIL"), "node"),
    ("a driver's error", [failed("error", "RuntimeError: CUDA error: unknown error")], Gone("FAILED"), "node"),
    ("NCCL's error", [failed("error", "DistBackendError: NCCL operation timed out")], Gone("FAILED"), "node"),
    ("torch's exception", [failed("memory-gpu", "OutOfMemoryError: CUDA")], Gone("FAILED"), "oom_gpu"),
    ("its text alone", [failed("error", "CUDA out of memory. Tried to allocate")], Gone("FAILED"), "oom_gpu"),
    ("Python's exception", [failed("memory", "MemoryError")], Gone("FAILED"), "oom_host"),
    ("Slurm's word", [], Gone("OUT_OF_MEMORY"), "oom_host"),
    ("a damaged file", [failed("damaged", "shard-3 was altered")], Gone("FAILED"), "data"),
    ("a full disk", [failed("disk", "No space left on device")], Gone("FAILED"), "disk"),
    ("a folder that may not be written to", [failed("forbidden", "Permission denied")], Gone("FAILED"), "disk"),
    ("a token is missing", [failed("user", "401 Client Error: gated repo")], Gone("FAILED"), "auth"),
    ("a mistake in the study", [failed("user", "micro_batch is too short")], Gone("FAILED"), "user"),
    ("its parent was not there", [ended("blocked", failure="parent", error="gone")], Gone("FAILED"), "dependency"),
    ("scancel", [ended("stopped", signal="SIGTERM")], Gone("CANCELLED"), "cancelled"),
    ("a newer attempt", [failed("fenced")], Gone("FAILED"), "preempted"),
    ("anything else", [failed("error", "ZeroDivisionError")], Gone("FAILED"), "unknown"),
    ("kill -9", [], Gone("FAILED"), "unknown"),
    ("nobody knows", [], Gone(""), "unknown"),
]


@pytest.mark.parametrize(("name", "last", "gone", "kind"), CASES, ids=[case[0] for case in CASES])
def test_each_class_by_its_evidence(name: str, last: list[dict[str, Any]], gone: Gone, kind: str) -> None:
    found = ends([ITEM], [started(), began(), *last], gone, 3, parent_there=True)
    assert (found[ITEM].kind, found[ITEM].submission, found[ITEM].node) == (kind, 3, "n1")
    assert found[ITEM].evidence


def test_success_is_no_end_and_neither_is_divergence() -> None:
    for outcome in ("trained", "evaluated", "prepared", "merged", "diverged"):
        assert ends([ITEM], [started(), began(), ended(outcome)], Gone("COMPLETED"), 0, True) == {}


def test_only_the_last_life_counts() -> None:
    """A requeued task goes on in the same log."""
    log = [started(), began(), failed("error"), started("n2", 1), began(5)]
    found = ends([ITEM], log, Gone("NODE_FAIL"), 0, True)
    assert (found[ITEM].kind, found[ITEM].node, found[ITEM].at) == ("node", "n2", 5)


@pytest.mark.parametrize(
    ("log", "gone", "there", "held", "kind"),
    [
        ([{"kind": "held", "reason": "the group is held"}], Gone("FAILED"), True, False, "held"),
        ([], Gone("CANCELLED"), True, True, "held"),
        ([], Gone("CANCELLED", "DependencyNeverSatisfied"), True, False, "dependency"),
        ([], Gone("FAILED"), False, False, "dependency"),
        ([], Gone("CANCELLED"), True, False, "cancelled"),
        ([], Gone("FAILED"), True, False, "node"),
        ([{"kind": "crashed", "error": "ImportError: no torch"}], Gone("FAILED"), True, False, "user"),
    ],
)
def test_a_task_that_never_began_is_told_by_what_is_known(
    log: list[dict[str, Any]], gone: Gone, there: bool, held: bool, kind: str
) -> None:
    assert ends([ITEM, "evaluate:s"], log, gone, 0, there, held=held)[ITEM].kind == kind


def end(kind: str, at: int | None = None, node: str | None = None) -> End:
    return End(kind, "because", 0, at, node)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tries", "newest", "again"),
    [
        ([], None, True),
        ([end("preempted", at) for at in range(20)], 20, True),
        ([end("preempted")] * 20, None, True),
        ([end("timeout_progress", at) for at in range(20)], 20, True),
        ([end("timeout_progress", 5)], 5, True),  # no step forward: once more
        ([end("timeout_progress", 5), end("timeout_progress", 5)], 5, False),
        ([end("no_progress"), end("no_progress")], None, False),
        ([end("no_progress"), end("no_progress", 5)], 9, True),  # went forward since
        ([end("node", 1, "n1")] * 3, 1, True),
        ([end("node", 1, "n1")] * 4, 1, False),
        ([end("node", at, "n1") for at in range(8)], 8, True),
        ([end("oom_gpu")], None, True),
        ([end("oom_gpu")] * 2, None, False),
        ([end("oom_host")] * 2, None, False),
        ([end("data")], None, False),
        ([end("disk")], None, False),
        ([end("auth")], None, False),
        ([end("user")], None, False),
        ([end("cancelled")], None, False),
        ([end("dependency")] * 9, None, True),
        ([end("held")] * 9, None, True),
        ([end("unknown")], None, True),
        ([end("unknown")] * 2, None, False),
        ([end("unknown", 1), end("unknown", 5)], 9, True),  # each brought a checkpoint
    ],
)
def test_what_is_tried_again_and_how_often(tries: list[End], newest: int | None, again: bool) -> None:
    assert (judge(tries, newest).hold is None) is again


def test_remedies_follow_from_what_went_wrong() -> None:
    verdict = judge([end("node", 1, "n1"), end("node", 1, "n3"), end("oom_gpu"), end("oom_host")], None)
    assert (verdict.avoid, verdict.halvings, verdict.memory) == (("n1", "n3"), 1, 1)


def test_every_class_has_a_policy() -> None:
    kinds = {case[3] for case in CASES} | {"held", "diverged"}
    assert kinds == set(POLICY)


def test_a_word_in_an_error_does_not_make_it_an_authorisation() -> None:
    assert of_failure("user", "batch_tokens: 401k does not fit") == "user"
    assert of_failure("user", "403 Forbidden for url") == "auth"
