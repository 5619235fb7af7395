"""What of a study is in Slurm now, and how its earlier jobs ended: one look at the queue, and the tasks' logs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.launch.slurm import asked, canary, classes, client
from harness.launch.slurm.classes import End
from harness.launch.slurm.client import Queue, Row
from harness.launch.work import Work
from harness.store import submissions
from harness.store.layout import Folder, SubmissionFolder
from harness.store.submissions import Element, Gone, Intent

KINDS = ("base", "train", "merge", "evaluate")
NOT_ACCEPTED = "sbatch was never answered, and Slurm knows no job of its name"


@dataclass
class Submission:
    """One submission as it stands. live: its tasks in the queue, by index; gone: how the others left."""

    folder: SubmissionFolder
    intent: Intent
    job: str | None
    elements: list[Element]
    live: dict[int, Row] = field(default_factory=dict)
    gone: dict[int, Gone] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.folder.number

    def word(self, index: int) -> str:
        """What scancel and dependencies call a task."""
        return f"{self.job}_{index}" if self.intent.array else str(self.job)


@dataclass
class Seen:
    """All submissions that Slurm accepted, in order."""

    submissions: list[Submission]

    @property
    def live(self) -> list[Submission]:
        return [submission for submission in self.submissions if submission.live]

    def under_way(self) -> dict[str, tuple[Submission, int]]:
        """Where each item that is in the queue is being done, or waits to be."""
        found = {}
        for submission in self.live:
            for index in submission.live if submission.intent.kind == "work" else ():
                for item in submission.elements[index].ids:
                    found[item] = (submission, index)
        return found

    def beside(self, needed: Collection[str], known: Collection[str]) -> dict[str, bool]:
        """Tasks in the queue that do what is not `known` to the study any more, in scancel's words (an array of which
        all do by its id alone); and whether they do what is `needed`, too."""
        found: dict[str, bool] = {}
        for one in self.live:
            ids = {index: set(one.elements[index].ids) for index in one.live if one.intent.kind == "work"}
            own = {index: bool(of_task & set(needed)) for index, of_task in ids.items() if of_task - set(known)}
            if len(own) == len(one.live) and len(set(own.values())) == 1:
                found[str(one.job)] = next(iter(own.values()))
            else:
                found |= {one.word(index): too for index, too in own.items()}
        return found


def observe(folder: Folder, queue: Queue) -> Seen:
    """Match what was submitted with the queue, and record what has left it. The caller holds the folder's lock."""
    found = []
    for place in folder.all_submissions():
        intent = submissions.read_intent(place)
        if intent is None or submissions.is_void(place):
            continue
        job = submissions.read_job(place)
        if job is None:  # whoever submitted it was killed before the answer was written down
            job = queue.job_named(intent.name)
            if job is None:
                submissions.write_void(place, NOT_ACCEPTED)
                continue
            submissions.write_job(place, job)
        found.append(_submission(place, intent, job, queue))
    _account(found)
    return Seen(found)


def look(folder: Folder, queue: Queue) -> Seen:
    """The same for a reader: writes nothing."""
    found = []
    for place in folder.all_submissions():
        intent = submissions.read_intent(place)
        if intent is None or submissions.is_void(place):
            continue
        job = submissions.read_job(place) or queue.job_named(intent.name)
        if job is not None:
            found.append(_submission(place, intent, job, queue))
    return Seen(found)


def _submission(place: SubmissionFolder, intent: Intent, job: str, queue: Queue) -> Submission:
    submission = Submission(place, intent, job, submissions.read_elements(place), gone=submissions.read_gone(place))
    indices = [index for index, element in enumerate(submission.elements) if element.items]
    for index in indices if intent.kind == "work" else [0]:
        if index in submission.gone:
            continue
        row = queue.tasks.get((job, index))
        if row is not None and row.active:
            submission.live[index] = row
        else:
            submission.gone[index] = Gone(row.state, row.reason) if row is not None else Gone("")
    return submission


def _account(found: list[Submission]) -> None:
    """Write down how tasks have left. Where squeue has forgotten some, sacct is asked once, if there is one."""
    for submission in found:
        before = submissions.read_gone(submission.folder)
        new = {index: how for index, how in submission.gone.items() if index not in before}
        if not new:
            continue
        if any(not how.state for how in new.values()):
            told = client.accounted([str(submission.job)], submission.intent.time)
            for index in [index for index, how in new.items() if not how.state]:
                submission.gone[index] = Gone(told.get((str(submission.job), index), ""))
        submissions.write_gone(submission.folder, submission.gone)


def tries(seen: Seen, folder: Folder, done: Callable[[str], bool]) -> dict[str, list[End]]:
    """How each item's tries ended, oldest first; those before a `retry` of it are forgotten.

    done: whether a state is there.
    """
    found: dict[str, list[End]] = {}
    forgotten, over_budget = asked.forgotten(folder), asked.over_budget(folder)
    for submission in seen.submissions:
        if submission.intent.kind != "work":
            continue
        for index, gone in sorted(submission.gone.items()):
            element = submission.elements[index]
            if not element.items:
                continue
            awaited = Work.from_json(element.items[0]).awaits
            ended = classes.ends(
                element.ids,
                submissions.read_log(submission.folder, index),
                gone,
                submission.number,
                all(done(state) for state in awaited),
                element.remedy,
                _still_held(folder, submission),
            )
            for item, end in ended.items():
                if submission.number < forgotten.get(item, 0):
                    continue
                if end.kind == "cancelled" and submission.number < over_budget.get(item, 0):
                    end = replace(end, kind="held", evidence="ended because the budget was used up")
                found.setdefault(item, []).append(end)
    return found


def _still_held(folder: Folder, submission: Submission) -> bool:
    """Whether a submission was held for a canary that has not passed."""
    number = submission.intent.held_for
    return number is not None and not canary.passed(folder, folder.submission(number))


def canaries(seen: Seen, passed: Callable[[SubmissionFolder], bool]) -> tuple[set[str], Mapping[str, int]]:
    """Groups whose resources have shown that they work, and the submissions of canaries that are still to."""
    good: set[str] = set()
    waiting: dict[str, int] = {}
    for submission in seen.submissions:
        if submission.intent.canary:
            if passed(submission.folder):
                good.add(submission.intent.group)
            elif submission.live:
                waiting[submission.intent.group] = submission.number
    return good, {group: number for group, number in waiting.items() if group not in good}


def items_of(runs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Ids of all that may be done for runs, as run.json has them."""
    found = set()
    for run in runs:
        for state in {run["base"], *run["path"], *(point["segment"] or run["base"] for point in run["points"])}:
            found |= {f"{kind}:{state}" for kind in KINDS}
    return found
