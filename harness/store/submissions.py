"""Submissions: `submissions/<n>/`, one for each call of sbatch.

    intent.json    what is to be submitted, written before sbatch is called
    array.jsonl    line i is what the task with index i does: its items of work, as orders
    submit.sbatch  the text that was given to sbatch; `sbatch submit.sbatch` by hand does the same again
    job.json       Slurm's id, written after sbatch, or by the first of its tasks that starts
    void.json      sbatch never accepted it; a task of it that turns up after all leaves at once
    gone.json      how its tasks left the queue, as ticks saw it; complete once all have
    log/<i>.jsonl  what the task with index i says of itself, one line each: started, began, ended, left

A submission is found again by its job's name, which holds its number; so a process that was killed around sbatch loses
nothing. Writers: a tick (which holds the folder's lock), and each task of its own log.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harness.store.atomic import append_json_line, read_json_lines, write_bytes, write_json, writing
from harness.store.layout import Folder, SubmissionFolder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1
Kind = Literal["work", "close"]


@dataclass(frozen=True)
class Element:
    """What one task does: items of work in order, as JSON of `Work`. None at all where an array has a gap.

    remedy: settings that were changed because of an earlier failure, for the record of its attempts.
    """

    items: Sequence[Mapping[str, Any]]
    remedy: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The items' names, `kind:state`."""
        return [f"{item['kind']}:{item['state']}" for item in self.items]


@dataclass(frozen=True)
class Intent:
    """What is to be submitted.

    name: of the job, unique to the submission. group: digest of the resources. parameters: of Submitit's executor.
    count: lines of array.jsonl; array: whether they form a job array (one alone does not). settings: what the orders of
    all its items carry; of a close, whether it trains. snapshot: the tree hash of the code that it runs. canary: its
    first task is the first of its group, which must pass its first checkpoint. held_for: the submission of the canary
    that this one is held for, None when it may start. cap: tasks that may run at once, None for all.
    """

    kind: Kind
    name: str
    group: str
    parameters: Mapping[str, Any]
    count: int
    array: bool
    snapshot: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    canary: bool = False
    held_for: int | None = None
    cap: int | None = None
    time: float = 0.0


def write_intent(folder: Folder, intent: Intent, elements: Sequence[Element]) -> SubmissionFolder:
    """Claim the next number and write what will be submitted under it. The caller holds the folder's lock."""
    there = folder.all_submissions()
    submission = folder.submission(there[-1].number + 1 if there else 0)
    with writing(submission.logs):
        submission.logs.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"items": list(e.items), "remedy": dict(e.remedy)}, sort_keys=True) for e in elements]
    write_bytes(submission.elements, ("\n".join(lines) + "\n").encode() if lines else b"")
    write_json(submission.intent, {"schema": SCHEMA, **asdict(intent), "time": round(time.time(), 3)})
    return submission


def read_intent(submission: SubmissionFolder) -> Intent | None:
    """None for a folder whose writer was killed before its intent was there: nothing was submitted from it."""
    try:
        value = read_marked(submission.intent, SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
    return Intent(**{name: value[name] for name in value if name != "schema"})


def read_elements(submission: SubmissionFolder) -> list[Element]:
    """What the tasks do, by index."""
    return [Element(line["items"], line["remedy"]) for line in read_json_lines(submission.elements)]


def read_element(submission: SubmissionFolder, index: int) -> Element:
    """What the task `index` does. Raises IndexError when there is none of that index."""
    return read_elements(submission)[index]


def write_job(submission: SubmissionFolder, job: str) -> None:
    """Record Slurm's id unless it is known."""
    if read_job(submission) is None:
        write_json(submission.job, {"schema": SCHEMA, "id": job})


def read_job(submission: SubmissionFolder) -> str | None:
    value = _read(submission.job)
    return None if value is None else str(value["id"])


def write_void(submission: SubmissionFolder, why: str) -> None:
    """Say that this was never accepted by Slurm."""
    write_json(submission.void, {"schema": SCHEMA, "why": why})


def is_void(submission: SubmissionFolder) -> bool:
    return submission.void.exists()


@dataclass(frozen=True)
class Gone:
    """How a task left the queue. state: Slurm's word, empty where nobody saw it. reason: Slurm's, or ours."""

    state: str
    reason: str = ""


def write_gone(submission: SubmissionFolder, gone: Mapping[int, Gone]) -> None:
    """Record how tasks left, those of before included."""
    write_json(
        submission.gone, {"schema": SCHEMA, "tasks": {str(index): asdict(how) for index, how in sorted(gone.items())}}
    )


def read_gone(submission: SubmissionFolder) -> dict[int, Gone]:
    value = _read(submission.gone) or {"tasks": {}}
    return {int(index): Gone(**how) for index, how in value["tasks"].items()}


def say(submission: SubmissionFolder, index: int, kind: str, **fields: Any) -> None:
    """Append a line to a task's log, as far as that can be written: a full disk must not end the work itself."""
    with contextlib.suppress(Exception):
        append_json_line(submission.log(index), {"time": round(time.time(), 3), "kind": kind, **fields})


def read_log(submission: SubmissionFolder, index: int) -> list[dict[str, Any]]:
    """What a task has said so far, empty when it has not started."""
    return read_json_lines(submission.log(index))


def _read(path: Any) -> dict[str, Any] | None:
    try:
        return read_marked(path, SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
