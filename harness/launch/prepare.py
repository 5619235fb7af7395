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
from harness.launch.slurm.preview import sbatch_calls
from harness.plan.cost import shape_of
from harness.plan.exposure import Views, views
from harness.plan.observed import TaskRef
from harness.plan.plan import Plan, build_plan
from harness.plan.records import PlanRun, names_of
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

    @property
    def shared_pools(self) -> Views:
        """Which sources hold the documents of which."""
        return views(self.resolved.sources)


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study in `path`. Raises StudyError."""
    from harness.study import load_study

    return load_study(path, overrides)


def folder_of(study: Study, chosen: Path | None) -> Folder:
    """Where a study's results go: what was chosen, else `results/<study>`."""
    return Folder(chosen if chosen is not None else Path("results") / study.spec.study)


def planned(study: Study, folder: Folder, share: bool = True) -> Prepared:
    """The plan with what the folder's manifests say. Reads no weights and no data. Raises UserError for a shortage."""
    prepared = _prepared(study, folder, known(study, folder), share)
    check_shortage(prepared)
    return prepared


def resolved_plan(study: Study, folder: Folder, share: bool, note: Callable[[str], None]) -> Prepared:
    """The plan after finding out what the base and the sources are. Raises UserError, also for a shortage of data."""
    from harness.evals.suites import check_packages

    check_packages(study.spec.eval.suites)
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
    study = _at_cost(study, resolved)
    tasks = evaluation_tasks(study, resolved)
    references = [TaskRef(task.suite, task.task, task.kind, task.key, task.headline) for task in tasks]
    seen = observe(folder)

    def plan_of(study: Study) -> Plan:
        found, sources = resolved.identities, resolved.sources
        try:
            return build_plan(study, found, resolved.base, references, seen.observed, share, sources)
        except Mistake as mistake:
            raise study.error(mistake) from None

    plan = plan_of(study)
    over = _to_drop(plan, resolved)
    if over:
        from harness.study.study import without

        study = without(study, over)
        plan = plan_of(study)
    verdicts = hold(plan, folder)
    plan.totals["sbatch_calls"] = sbatch_calls(plan, tasks)
    return Prepared(study, folder, resolved, tasks, Seen(plan.observed, seen.damage, seen.record), plan, verdicts)


def _at_cost(study: Study, resolved: Resolved) -> Study:
    """The study with the lengths that `flops_of` asks for, where the model is known."""
    if not study.unsolved:
        return study
    from harness.study.study import at_cost

    shape = shape_of(resolved.base, study.arms[0].treatment.base.model.get("config"))
    return study if shape is None else at_cost(study, shape.flops_per_token)


def check_shortage(prepared: Prepared) -> None:
    """Raise UserError when a run that must be trained asks a source for more epochs than it may be used."""
    from harness.data import check_demand

    caps, pools = _caps(prepared.study, prepared.resolved)
    for run in prepared.plan.runs if caps else ():
        if any(prepared.plan.segments[name].needed for name in run.path):
            check_demand(_pieces(run), pools, caps, run.name, prepared.shared_pools)


def _to_drop(plan: Plan, resolved: Resolved) -> dict[str, str]:
    """Arms that serve a source more often than its `max_epochs` and may be left out (`over: drop`), and why."""
    study = plan.study
    droppable = {name for name, candidate in study.candidates.items() if candidate.drop}
    caps, pools = _caps(study, resolved)
    if not droppable or not caps:
        return {}
    from harness.data.demand import shortages

    names = names_of(plan.arms)
    first = {run.arm: run for run in reversed(plan.runs)}
    over = {}
    for arm in (arm.name for arm in study.arms if arm.name in droppable):
        found = shortages(_pieces(first[names[arm]]), pools, caps, views(resolved.sources))
        if found:
            over[arm] = "; ".join(map(str, found))
    return over


def _caps(study: Study, resolved: Resolved) -> tuple[dict[str, Any], dict[str, int]]:
    """`max_epochs` of the resolved sources that have one, and the training tokens of every resolved source."""
    pools = {name: int(manifest["train"]["tokens"]) for name, manifest in resolved.sources.items()}
    caps = {name: source.max_epochs for name, source in study.spec.sources.items() if name in pools}
    return {name: cap for name, cap in caps.items() if cap is not None}, pools


def _pieces(run: PlanRun) -> list[dict[str, Any]]:
    return [piece.as_json(seed) for piece, seed in zip(run.pieces, run.data_seeds, strict=True)]
