"""`base.run: STUDY/ARM/SEEDS`: a run of another study is where this one starts.

STUDY is a results folder: one beside this study's own, or a path (relative to the study file). What is promoted is the
weights at the run's end; their content names the base, so moving either folder changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch.status import read_plan, run_of
from harness.plan.schedule import end_rate
from harness.store import states
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged
from harness.store.places import expanded
from harness.study.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.study import Study


def promoted(study: Study, folder: Folder) -> Study:
    """`study` with the model folder of the run that its base names; as it is without one.

    folder: this study's results. Raises UserError for a run that is not there, is not finished or diverged, and for a
    declared `base.lr` that is not the rate at which the run was left.
    """
    default = study.arms[0]
    base = default.treatment.base
    if "run" not in base.model:
        return study
    name = str(base.model["run"])
    results, arm, seeds = _parts(name)
    found = _results_folder(name, results, study.path.absolute().parent, folder)
    state, done = _end(name, found, _run(name, found, arm, seeds))
    if base.lr is not None:
        _check_rate(name, state, done.tokens, base.lr)
    model = {"path": str(state.checkpoints.resolve() / str(done.checkpoint) / "model")}
    treatment = replace(default.treatment, base=replace(base, model=model))
    return replace(study, arms=(replace(default, treatment=treatment), *study.arms[1:]))


def _parts(name: str) -> tuple[str, str, str]:
    results, _, rest = name.rpartition("/")
    results, _, arm = results.rpartition("/")
    if not (results and arm and rest):
        raise UserError(f"`base.run: {name}` is not STUDY/ARM/SEEDS, such as math-share/math=0.3/d1.")
    return results, arm, rest


def _results_folder(name: str, results: str, study_folder: Path, folder: Folder) -> Folder:
    beside, written = folder.root.absolute().parent / results, study_folder / expanded(results)
    for path in (beside, written):
        if Folder(path).plan_json.is_file():
            return Folder(path)
    there = sorted(path.parent.name for path in folder.root.absolute().parent.glob("*/plan.json"))
    raise UserError(f"`base.run: {name}`: there is no results folder {beside} or {written}; {nearest(results, there)}")


def _run(name: str, found: Folder, arm: str, seeds: str) -> dict[str, Any]:
    try:
        return run_of(found, read_plan(found), arm, seeds)
    except UserError as error:
        raise UserError(f"`base.run: {name}`: {error}") from None


def _end(name: str, found: Folder, run: dict[str, Any]) -> tuple[StateFolder, states.Done]:
    """The state at the run's end, checked to be whole."""
    state = found.state(run["path"][-1])
    try:
        done = states.verify_state(state, contents=False)
    except Damaged as reason:
        raise UserError(f"`base.run: {name}`: {reason}. `ablate run` of that study makes it anew.") from None
    if done is None:
        raise UserError(f"`base.run: {name}` is not finished; `ablate run` of that study goes on with it.")
    if done.checkpoint is None:
        raise UserError(f"`base.run: {name}` diverged, so it has no weights at its end.")
    return state, done


def _check_rate(name: str, state: StateFolder, tokens: int, declared: float) -> None:
    """A declared rate at which the base was left is the one at which it was, after `tokens` of its path."""
    try:
        pieces = states.read_segment(state)["pieces"]
        left = end_rate(pieces[-1]["science"]["lr"], tokens)
    except (FileNotFoundError, Damaged, LookupError, ZeroDivisionError) as reason:
        raise UserError(
            f"`base.lr: {declared:g}`: at which rate `base.run: {name}` ended cannot be told, since "
            f"{state.segment_json} is not whole ({reason}). `ablate run` of that study makes it anew."
        ) from None
    if abs(declared - left) > 1e-9 * max(declared, left):
        raise UserError(f"`base.lr: {declared:g}`, but `base.run: {name}` ended at a rate of {left:g}; write that.")
