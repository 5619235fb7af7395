"""From a study and a results folder to a plan: what would run, against what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch.controls import hold
from harness.launch.items import items_of
from harness.launch.observe import Seen, observe
from harness.launch.resolve import Resolved, evaluation_tasks, known, lacks_origin, resolve
from harness.plan.observed import TaskRef
from harness.plan.plan import Plan, build_plan
from harness.store.layout import Folder
from harness.study.errors import Mistake

if TYPE_CHECKING:
    from analysis.controls import Verdict
    from harness.evals.settings import EvalTask
    from harness.study import Study


@dataclass(frozen=True)
class Prepared:
    """A plan with all that it was made of. verdicts: of the study's controls, as the folder shows them."""

    study: Study
    folder: Folder
    resolved: Resolved
    tasks: Sequence[EvalTask]
    seen: Seen
    plan: Plan
    verdicts: Sequence[Verdict] = ()

    @property
    def pools(self) -> dict[str, int]:
        """Training tokens of each resolved source."""
        return {name: int(manifest["train"]["tokens"]) for name, manifest in self.resolved.sources.items()}


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study in `path`. Raises StudyError."""
    from harness.study import load_study

    return load_study(path, overrides)


def folder_of(study: Study, chosen: Path | None) -> Folder:
    """Where a study's results go: what was chosen, else `results/<study>`."""
    return Folder(chosen if chosen is not None else Path("results") / study.spec.study)


def planned(study: Study, folder: Folder, share: bool = True) -> Prepared:
    """The plan with what the folder's manifests say. Reads no weights and no data."""
    return _prepared(study, folder, known(study, folder), share)


def resolved_plan(study: Study, folder: Folder, share: bool, note: Callable[[str], None]) -> Prepared:
    """The plan after finding out what the base and the sources are. Raises UserError, also for a shortage of data."""
    there = known(study, folder)
    if lacks_origin(there):
        prepared = _prepared(study, folder, there, share)
        if not _has_work(prepared):
            return prepared
    prepared = _prepared(study, folder, resolve(study, folder, note), share)
    check_shortage(prepared)
    return prepared


def _has_work(prepared: Prepared) -> bool:
    """Whether anything is left to train or to evaluate."""
    diverged = {name for name, seen in prepared.seen.observed.states.items() if seen.outcome == "diverged"}
    return bool(items_of(prepared.plan, prepared.tasks, diverged))


def again(prepared: Prepared, share: bool) -> Prepared:
    """The same study against what is there now."""
    return _prepared(prepared.study, prepared.folder, prepared.resolved, share)


def _prepared(study: Study, folder: Folder, resolved: Resolved, share: bool) -> Prepared:
    tasks = evaluation_tasks(study, resolved)
    references = [TaskRef(task.suite, task.task, task.kind, task.key, task.headline) for task in tasks]
    seen = observe(folder)
    try:
        plan = build_plan(study, resolved.identities, resolved.base, references, seen.observed, share, resolved.sources)
    except Mistake as mistake:
        raise study.error(mistake) from None
    return Prepared(study, folder, resolved, tasks, Seen(plan.observed, seen.damage), plan, hold(plan, folder))


def check_shortage(prepared: Prepared) -> None:
    """Raise UserError when a run that must be trained asks a source for more epochs than it may be used."""
    from harness.data import check_demand

    caps: dict[str, Any] = {name: source.max_epochs for name, source in prepared.study.spec.sources.items()}
    for run in prepared.plan.runs:
        if any(prepared.plan.segments[name].needed for name in run.path):
            pieces = [piece.as_json(seed) for piece, seed in zip(run.pieces, run.data_seeds, strict=True)]
            check_demand(pieces, prepared.pools, caps, run.name)
