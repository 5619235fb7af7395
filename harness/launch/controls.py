"""The gate of a study with controls: other arms are held until every control lets them go."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.plan.records import names_of
from harness.study.controls import needed_arms

if TYPE_CHECKING:
    from analysis.controls import Verdict
    from harness.plan.plan import Plan
    from harness.store.layout import Folder


def hold(plan: Plan, folder: Folder) -> tuple[Verdict, ...]:
    """Enter in `plan.held` the arms that must wait, and why. Returns the verdicts of the controls, none without any.

    What a control needs is never held: its own runs, and those of the arm that it names. Neither are arms of which
    nothing is left to do.
    """
    if not plan.study.controls:
        return ()
    from analysis.controls import verdicts  # imports numpy and scipy: for studies with controls
    from analysis.frame import read_frame

    found = tuple(verdicts(read_frame(folder.root, plan.record())))
    blocking = [verdict for verdict in found if not verdict.released]
    if blocking:
        failed = [verdict.name for verdict in blocking if verdict.passed is False]
        names = ", ".join(f"`{name}`" for name in failed or [verdict.name for verdict in blocking])
        reason = f"control {names} failed" if failed else f"waits for control {names}"
        plan.held = dict.fromkeys(_others(plan), reason)
    return found


def _others(plan: Plan) -> list[str]:
    """Arms that no control rests on and that are not done."""
    own = names_of(plan.arms)
    needed = {own[name] for name in needed_arms(plan.study.controls)}
    left = {item.run for item in plan.evals if not item.done}
    undone = {
        run.arm for run in plan.runs if run.name in left or any(plan.segments[state].needed for state in run.path)
    }
    return [arm.name for arm in plan.arms if arm.same_as is None and arm.name in undone - needed]


def paragraph(verdicts: Sequence[Verdict], held: Sequence[str], width: int = 80) -> str:
    """Why arms are held: which control failed or is not known, by how much, and how to go on."""
    said = [f"control `{verdict.name}`: {verdict.sentence}." for verdict in verdicts if not verdict.released]
    failed = [verdict.name for verdict in verdicts if not verdict.released and verdict.passed is False]
    shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
    arms = f"{len(held)} arm{'s are' if len(held) != 1 else ' is'} held: {shown}."
    if failed:
        allow = ", ".join(f"{name}: [control-failed]" for name in failed)
        how = (
            "Find out why before you pay for them; what is there can be reported. To go on all the same: "
            f"`compare.allow: {{{allow}}}`."
        )
    else:
        how = "The same command goes on when what stopped its runs is put right."
    return "\n".join(textwrap.wrap(" ".join([*said, arms, how]), width, break_on_hyphens=False))
