"""What a cluster would be given, before anything is submitted: how many calls of sbatch, and their text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from harness.launch.items import items_of
from harness.launch.slurm.batches import Batch, batches
from harness.launch.slurm.chains import chains
from harness.launch.slurm.resources import Resources, group_of
from harness.launch.work import Work
from harness.plan.plan import is_evaluated

if TYPE_CHECKING:
    from harness.evals.settings import EvalTask
    from harness.launch.prepare import Prepared
    from harness.plan.plan import Plan


def sbatch_calls(plan: Plan, tasks: Sequence[EvalTask]) -> int:
    """How often sbatch would be called for what is to be done, the last job included; 0 where nothing is."""
    found = _batches(plan, items(plan, tasks))
    return len(found) + 1 if found else 0


def texts(prepared: Prepared) -> list[str]:
    """The sbatch files, one after the other. `JOB0` stands for the id that Slurm gives the first one."""
    from harness.launch import code
    from harness.launch.record import settings
    from harness.launch.slurm.remedies import Remedied
    from harness.launch.slurm.seen import Submission
    from harness.launch.slurm.submit import Submitter, array_of, close_intent
    from harness.launch.slurm.throttle import shares

    plan, spec = prepared.plan, prepared.study.spec
    asks = Resources(spec.launch, plan)
    snapshot = prepared.folder.snapshots / code.tree_hash()
    submitter = Submitter(prepared.folder, spec.study, snapshot, spec.launch.threads, settings(prepared))
    numbers = [place.number for place in prepared.folder.all_submissions()]
    first = max(numbers, default=-1) + 1
    wanted = items(plan, prepared.tasks)
    asks.check(wanted, plan)
    found = _batches(plan, wanted)
    placed: dict[Batch, Submission] = {}
    said = []
    for at, (batch, share) in enumerate(shares(found, spec.launch.parallel).items()):
        parameters = asks.of(next(iter(batch.tasks.values())).items[0])
        behind = [str(placed[share.behind].job)] if share.behind is not None else []
        intent, elements = submitter.intent(
            batch, Remedied(parameters), group_of(parameters), placed, share.cap, behind
        )
        place = prepared.folder.submission(first + at)
        placed[batch] = Submission(place, intent, f"JOB{at}", elements)
        said.append(submitter.text(first + at, intent, array_of(batch, share.cap)))
    if placed:
        last = close_intent(asks.close(), [str(one.job) for one in placed.values()], snapshot.name)
        said.append(submitter.text(first + len(placed), last, None))
    return said or ["nothing is left to submit"]


def items(plan: Plan, tasks: Sequence[EvalTask]) -> list[Work]:
    """What would be submitted, parents first."""
    diverged = {name for name, seen in plan.observed.states.items() if seen.outcome == "diverged"}
    found = items_of(plan, tasks, diverged)
    spec = plan.study.spec.eval
    if plan.unresolved and not isinstance(spec.held_out, str):
        found += _unknown_yet(plan, {item.state for item in found if item.kind == "evaluate"})
    return found


def _unknown_yet(plan: Plan, known: Collection[str]) -> list[Work]:
    """Evaluations on held-out text whose tasks have no name before the sources are read."""
    points = [(run.name, point) for run in plan.runs if run.arm not in plan.held for point in run.points]
    states = {point.state: f"{name}@{point.label}" for name, point in points if is_evaluated(plan.study, point)}
    return [Work("evaluate", state, state, 0, name) for state, name in states.items() if state not in known]


def _batches(plan: Plan, wanted: Sequence[Work]) -> list[Batch]:
    asks = Resources(plan.study.spec.launch, plan)
    return batches(chains(wanted, lambda item: asks.group(item)))
