"""The tick by whoever has only a results folder: its last job, and `ablate status --watch`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.launch import prepare
from harness.launch.plan_files import recorded_options
from harness.launch.slurm.bring import bring
from harness.launch.worker import PERFORM
from harness.plan.canonical import digest
from harness.store import plans, submissions

if TYPE_CHECKING:
    from harness.launch.progress import Silent
    from harness.launch.run import Report
    from harness.store.layout import Folder


def again(folder: Folder, listener: Silent, last: bool = False, perform: str = PERFORM) -> Report | None:
    """Bring the queue to what the folder's study needs. None, with a note, where the study's file has been changed
    since: what a person has not asked for yet is not submitted. Raises UserError."""
    options = replace(recorded_options(folder.root), executor="slurm", perform=perform, train=_trains(folder))
    study = prepare.load(options.study, options.overrides)
    asked = (plans.read_plan(folder) or {}).get("asked") or {}
    if digest(study.resolved) != asked.get("resolved"):
        listener.note(
            f"{options.study} has changed since it was submitted: nothing new is submitted from here. "
            f"`{options.command()}` brings the folder to the study as it is now."
        )
        return None
    return bring(study, options, listener, last)


def _trains(folder: Folder) -> bool:
    """Whether what was submitted last is to train, too, or evaluates alone (`ablate eval --executor slurm`)."""
    for place in reversed(folder.all_submissions()):
        intent = submissions.read_intent(place)
        if intent is not None and intent.kind == "close" and not submissions.is_void(place):
            return bool(intent.settings.get("train", True))
    return True
