"""`ablate export`: a run's weights as a model folder with its card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from harness.launch.card import END, Exported, card
from harness.launch.status import read_plan, run_of
from harness.store import states
from harness.store.atomic import publish, staging_folder, writing
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.places import check_folder_place
from harness.study.errors import UserError, nearest


def export(folder: Folder, which: str, out: Path) -> Path:
    """Copy the model of `ARM`, `ARM/SEEDS` or `ARM/SEEDS@LABEL` to `out`, with a README.md. Returns `out`.

    LABEL: a point of the run, such as `ema`; its end without one. Raises UserError, having changed nothing, when `out`
    exists, when there is no such run or point, and when its weights are not there.
    """
    it = find(folder, which)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; export to a folder that does not.")
    check_folder_place(out)
    final = out.absolute()
    with writing(final):
        staged = staging_folder(final)
        try:
            model = folder.state(it.state).checkpoints / str(it.done.checkpoint) / "model"
            shutil.copytree(model, staged, dirs_exist_ok=True)
            (staged / "README.md").write_text(card(it), encoding="utf-8")
            publish(staged, final)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return out


def find(folder: Folder, which: str) -> Exported:
    """What `which` names, its weights looked at. Raises UserError."""
    plan = read_plan(folder)
    name, seeds, label = _parts(plan, which)
    run = run_of(folder, plan, name, seeds)
    labels = {str(point["label"]): str(point["state"]) for point in run["points"]}
    labels.setdefault(END, run["path"][-1])
    if label not in labels:
        raise UserError(f"{run['name']} has no point `{label}`; {nearest(label, labels)}")
    title = run["name"] if label == END else f"{run['name']}@{label}"
    state = labels[label]
    try:
        done = states.verify_state(folder.state(state))
    except Damaged as reason:
        raise UserError(f"{title} cannot be exported: {reason}. `ablate run` makes it anew.") from None
    if done is None or done.checkpoint is None:
        why = "is not finished" if done is None else "diverged, so it has no weights at its end"
        raise UserError(f"{title} {why}; there is nothing to export.")
    return Exported(folder, plan, run, name, label, state, done)


def _parts(plan: dict[str, Any], which: str) -> tuple[str, str, str]:
    """Arm, seeds (empty: not named) and label. An arm's own name may hold an `@`."""
    arm, _, seeds = which.partition("/")
    if seeds:
        seeds, at, label = seeds.partition("@")
    elif arm in {entry["name"] for entry in plan["arms"]}:
        at = label = ""
    else:
        arm, at, label = arm.rpartition("@") if "@" in arm else (arm, "", "")
    if at and not label:
        raise UserError(f"`{which}` ends with `@`; expected a point behind it, such as `ema`.")
    return arm, seeds, label or END
