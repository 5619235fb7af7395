"""Holds a group of jobs whose first ones fail alike and early, instead of burning through the queue.

`submissions/held-<group>.json` is there while a group is held. It is written by the job that fails, so that it works
while nobody ticks, and every task of the group that starts later leaves at once. `ablate retry` removes it.
"""

from __future__ import annotations

from pathlib import Path

from harness.launch.slurm import canary
from harness.launch.slurm.classes import Class, of_failure
from harness.store import submissions
from harness.store.atomic import write_json
from harness.store.layout import Folder, SubmissionFolder
from harness.store.markers import Damaged, read_marked
from harness.study.errors import UserError

EQUAL = 3  # early failures with one cause; a canary is enough by itself
# What another task of the group would meet as well. A node, a preemption or a bad seed is not, and for a lack of memory
# there is a remedy, which the whole group gets.
SHARED: frozenset[Class] = frozenset({"user", "auth", "data", "disk", "unknown"})


def path(folder: Folder, group: str) -> Path:
    return folder.submissions / f"held-{group}.json"


def reason(folder: Folder, group: str) -> str | None:
    """Why a group is held, None when it is not."""
    try:
        return str(read_marked(path(folder, group), submissions.SCHEMA)["reason"])
    except (FileNotFoundError, Damaged):
        return None


def hold(folder: Folder, group: str, why: str) -> None:
    write_json(path(folder, group), {"schema": submissions.SCHEMA, "group": group, "reason": why})


def let_go(folder: Folder) -> int:
    """Hold no group any more. Returns how many were held."""
    held = list(folder.submissions.glob("held-*.json"))
    for file in held:
        file.unlink(missing_ok=True)
    return len(held)


def consider(folder: Folder, submission: SubmissionFolder, index: int) -> None:
    """After a task: hold its group if its failure, and those before it, say that the next would fail alike."""
    cause = _early_failure(submission, index)
    intent = submissions.read_intent(submission)
    if cause is None or intent is None:
        return
    kind, error = cause
    if intent.canary and not canary.passed(folder, submission):
        hold(
            folder, intent.group, f"the first run of its resources failed before its first checkpoint: {kind}: {error}"
        )
        try:
            canary.give_up(folder, intent.group)
        except UserError as problem:  # they stay held in Slurm; a tick cancels them
            print(f"held jobs could not be cancelled from here: {problem}")
        return
    alike = sum(_early_failure(submission, other) == cause for other in range(intent.count))
    if alike >= EQUAL:
        hold(folder, intent.group, f"{alike} runs failed alike before their first checkpoint: {kind}: {error}")


def _early_failure(submission: SubmissionFolder, index: int) -> tuple[Class, str] | None:
    """Class and error of a task that failed before it had written any checkpoint in its life; None for any other."""
    found = None
    for line in submissions.read_log(submission, index):
        if line["kind"] == "started":
            found = None
        elif line["kind"] == "ended" and line["outcome"] == "failed" and line.get("at") is None:
            kind = of_failure(str(line.get("failure")), str(line.get("error")))
            found = (kind, str(line.get("error"))) if kind in SHARED else None
    return found
