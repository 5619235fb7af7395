"""From a plan to items of work: bases to prepare, segments to train, states to evaluate."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.launch.work import Work
from harness.plan.reasons import lost_states

if TYPE_CHECKING:
    from harness.evals.settings import EvalTask
    from harness.plan.plan import Plan
    from harness.plan.records import PlanRun


def items_of(plan: Plan, tasks: Sequence[EvalTask], diverged: Collection[str] = (), train: bool = True) -> list[Work]:
    """Everything that the plan says must be done, parents first, evaluations last.

    diverged: states that will never be there; what hangs on them is left out. train=False: evaluations only.
    What belongs to nobody but arms that are held is left out, too, unless nothing is trained anyway.
    """
    lost = set(lost_states(plan, diverged))
    if train and plan.held:
        lost |= held_states(plan)
    items: list[Work] = []
    users = _users(plan)
    if train:
        items += [
            Work("base", base.id, None, 0, f"base of {named(users[base.id])}")
            for base in plan.bases.values()
            if base.needed and base.id not in lost
        ]
        for segment in plan.segments.values():
            if segment.kind == "merge" and segment.needed and segment.id not in lost:
                name = f"{_MERGES[str(segment.recipe and segment.recipe['method'])]} of {named(users[segment.id])}"
                first, *also = segment.parents
                items.append(Work("merge", segment.id, first, 0, name, also=tuple(also)))
            elif segment.needed and segment.id not in lost:
                start = (
                    [] if segment.start_path is None else [{"path": segment.start_path, "tokens": segment.start_tokens}]
                )
                needs = None if segment.start_path is not None else segment.parent
                tokens = segment.tokens_to - segment.start_tokens
                name = f"{segment.stage} of {named(users[segment.id])}"
                items.append(Work("train", segment.id, needs, tokens, name, {"start": start}))
    return items + _evaluations(plan, tasks, lost)


def _evaluations(plan: Plan, tasks: Sequence[EvalTask], lost: Collection[str]) -> list[Work]:
    """One item a state, with every task that is missing there."""
    orders = {task.key: task.to_json() for task in tasks}
    missing: dict[str, dict[str, Any]] = {}
    points: dict[str, list[str]] = {}
    for item in plan.evals:
        if not item.done and item.state not in lost:
            missing.setdefault(item.state, {})[item.task.key] = orders[item.task.key]
            labels = points.setdefault(item.state, [])
            if f"{item.run}@{item.label}" not in labels:
                labels.append(f"{item.run}@{item.label}")
    return [
        Work("evaluate", state, state, 0, named(points[state]), {"tasks": list(wanted.values())})
        for state, wanted in missing.items()
    ]


def held_states(plan: Plan) -> set[str]:
    """States on the paths of held arms alone."""
    free = {state for run in plan.runs if run.arm not in plan.held for state in _states(run)}
    return {state for run in plan.runs if run.arm in plan.held for state in _states(run)} - free


def _states(run: PlanRun) -> set[str]:
    return {run.base, *run.path, *(point.state for point in run.points)}


def _users(plan: Plan) -> Mapping[str, list[str]]:
    """The runs that pass through each base and segment."""
    users: dict[str, list[str]] = {}
    for run in plan.runs:
        merges = [point.state for point in run.points if plan.kind_of(point.state) == "merge"]
        for state in dict.fromkeys((run.base, *run.path, *merges)):
            users.setdefault(state, []).append(run.name)
    return users


_MERGES = {"ema": "average (EMA)", "mean": "weights"}  # what a recipe makes, in words, by its method


def named(users: Sequence[str]) -> str:
    """The first of several, and how many more."""
    return users[0] if len(users) == 1 else f"{users[0]} and {len(users) - 1} more"
