"""Hands batches to Slurm: the intent first, then sbatch through Submitit, then the id."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.launch.slurm import resources
from harness.launch.slurm.batches import Batch
from harness.launch.slurm.remedies import Remedied
from harness.launch.slurm.seen import Submission
from harness.launch.worker import PERFORM
from harness.store import submissions
from harness.store.atomic import write_bytes
from harness.store.layout import Folder
from harness.store.submissions import Element, Intent
from harness.study.errors import UserError

JOB, CLOSE = "harness.launch.slurm.job", "harness.launch.slurm.close"


class Refused(UserError):
    """sbatch did not take a submission. limit: because too many jobs are there already."""

    def __init__(self, message: str, limit: bool) -> None:
        super().__init__(message)
        self.limit = limit


def check_place(folder: Folder) -> None:
    """Raise UserError for a folder in which Slurm could not write what jobs print: they would die without a word."""
    place = str(folder.root.resolve())
    for letter, shown in (("%", "%"), ("\\", "\\"), ("\n", "a line break"), ("\r", "a line break")):
        if letter in place:
            raise UserError(
                f"{place!r} holds {shown if len(shown) > 1 else f'`{shown}`'}, which Slurm takes for something else in "
                "the names of its output files; choose another folder with -o."
            )


@dataclass
class Submitter:
    """Submits for one study. settings: what every order carries. perform: the work function of its jobs."""

    folder: Folder
    study: str
    snapshot: Path
    threads: int
    settings: Mapping[str, Any]
    perform: str = PERFORM

    def work(
        self,
        batch: Batch,
        given: Remedied,
        group: str,
        placed: Mapping[Batch, Submission],
        cap: int | None = None,
        also: Sequence[str] = (),
    ) -> Submission:
        """Submit a batch. group: of its resources without remedies. placed: the submissions of the batches before it.
        cap: tasks that may run at once. also: jobs that it waits for, however they end. Raises Refused."""
        intent, elements = self.intent(batch, given, group, placed, cap, also)
        return self._submit(intent, elements, array_of(batch, cap))

    def intent(
        self,
        batch: Batch,
        given: Remedied,
        group: str,
        placed: Mapping[Batch, Submission],
        cap: int | None,
        also: Sequence[str],
    ) -> tuple[Intent, list[Element]]:
        """What is written before a batch is submitted; its name is still missing."""
        elements = [Element([])] * (max(batch.tasks) + 1)
        for index, chain in batch.tasks.items():
            elements[index] = Element([asdict(item) for item in chain.items], given.remedy)
        held = batch.held_for
        number = None if held is None else placed[held].number if isinstance(held, Batch) else held
        more = dict(given.parameters.get("additional_parameters") or {})
        more |= {"requeue": True, "kill_on_invalid_dep": "yes"} | ({"hold": True} if number is not None else {})
        chosen = {**given.parameters, "additional_parameters": more}
        dependency = _dependency(batch, placed, also)
        if dependency:
            chosen["dependency"] = dependency
        intent = Intent(
            kind="work",
            name="",
            group=group,
            parameters=chosen,
            count=len(elements),
            array=batch.array,
            snapshot=self.snapshot.name,
            settings=self.settings,
            canary=batch.canary,
            held_for=number,
            cap=cap,
        )
        return intent, elements

    def close(self, parameters: Mapping[str, Any], after: list[str], train: bool = True) -> Submission:
        """Submit the job that ticks and writes the report when all of `after` has ended. train: whether it trains what
        is missing then, or evaluates alone."""
        return self._submit(close_intent(parameters, after, self.snapshot.name, train), [], None)

    def _submit(self, intent: Intent, elements: list[Element], array: str | None) -> Submission:
        there = self.folder.all_submissions()
        intent = _named(intent, job_name(self.study, there[-1].number + 1 if there else 0))
        place = submissions.write_intent(self.folder, intent, elements)
        try:
            job = self._sbatch(place.root.resolve(), intent, array)
        except Refused:
            submissions.write_void(place, "refused by sbatch")
            raise
        submissions.write_job(place, job)
        return Submission(place, intent, job, elements)

    def _sbatch(self, place: Path, intent: Intent, array: str | None) -> str:
        from harness.launch.slurm.submitit_executor import REFUSED

        executor, module, arguments = self._executor(place, intent, array)
        try:
            return str(executor.submit_module(module, arguments))
        except REFUSED as error:
            said = " ".join(str(error).split())
            write_bytes(place / "sbatch.out", (str(error) + "\n").encode())
            raise Refused(_refusal(said), is_limit(said)) from None

    def _executor(self, place: Path, intent: Intent, array: str | None) -> tuple[Any, str, list[str]]:
        from harness.launch.slurm.submitit_executor import Submitter as Executor
        from harness.launch.slurm.submitit_executor import setup_lines

        parameters = {**intent.parameters, "job_name": intent.name}
        threads = self.threads if intent.kind == "work" else parameters["cpus_per_task"]
        parameters["setup"] = [*setup_lines(self.snapshot, threads), *(parameters.get("setup") or [])]
        arguments = [str(place)] + ([self.perform] if self.perform != PERFORM else [])
        return Executor(place, parameters, array), JOB if intent.kind == "work" else CLOSE, arguments

    def text(self, number: int, intent: Intent, array: str | None) -> str:
        """The sbatch file that would be submitted under `number`."""
        intent = _named(intent, job_name(self.study, number, "xxxxxx"))
        executor, module, arguments = self._executor(self.folder.submission(number).root.absolute(), intent, array)
        return str(executor.text(module, arguments))


def job_name(study: str, number: int, token: str | None = None) -> str:
    """`<study>-<token>-<number>`; the token is random, so that no other job, of an earlier folder in the same place
    either, is ever taken for this one."""
    return f"{study}-{token or secrets.token_hex(3)}-{number}"


def array_words(indices: list[int], cap: int | None) -> str:
    """`0-35%8` of the indices of an array, ascending, with as many at once as `cap` says."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    words = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
    return words if cap is None or cap >= len(indices) else f"{words}%{cap}"


def close_intent(parameters: Mapping[str, Any], after: Sequence[str], snapshot: str, train: bool = True) -> Intent:
    """Of the job that comes when all of `after` has ended. train: whether it trains, too."""
    more = {**dict(parameters.get("additional_parameters") or {}), "requeue": True}
    chosen = {**parameters, "additional_parameters": more}
    if after:
        chosen["dependency"] = "afterany:" + ":".join(after)
    return Intent("close", "", resources.group_of(parameters), chosen, 1, False, snapshot, {"train": train})


def array_of(batch: Batch, cap: int | None) -> str | None:
    """sbatch's words for the indices of a batch, None where it is a single job."""
    return array_words(sorted(batch.tasks), cap) if batch.array else None


def _dependency(batch: Batch, placed: Mapping[Batch, Submission], also: Sequence[str]) -> str:
    words = []
    for after in batch.after:
        if isinstance(after, str):
            words.append(after)
        else:
            before, index = after
            words.append(str(placed[before].job) if index is None else placed[before].word(index))
    parts = [f"{batch.how}:{':'.join(words)}"] if words else []
    more = [word for word in dict.fromkeys(also) if word not in words]
    return ",".join([*parts, *([f"afterany:{':'.join(more)}"] if more else [])])


def _named(intent: Intent, name: str) -> Intent:
    return Intent(**{**asdict(intent), "name": name})


# The last: what a submission was to wait for has ended since the queue was looked at, and Slurm has forgotten it.
_LIMITS = (
    "MaxSubmitJob",
    "SubmitLimit",
    "SubmitJobs",
    "job submit limit",
    "MaxJobCount",
    "too many jobs",
    "maximum",
    "dependency problem",
)


def is_limit(said: str) -> bool:
    return any(words.lower() in said.lower() for words in _LIMITS)


def _refusal(said: str) -> str:
    at = said.find("sbatch: error:")
    return f"sbatch refused a submission: {said[at:] if at >= 0 else said}"[:600]
