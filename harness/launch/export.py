"""`ablate export`: a run's final weights as a model folder with its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.launch.status import read_plan
from harness.store import states
from harness.store.atomic import publish, staging_folder, writing
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.study.errors import UserError, nearest


def export(folder: Folder, which: str, out: Path) -> Path:
    """Copy the final model of `ARM` or `ARM/SEEDS` to `out`, which must not exist, with a README.md. Returns `out`."""
    plan = read_plan(folder)
    run = _run(folder, plan, which)
    if out.exists():
        raise UserError(f"{out} exists already; export to a folder that does not.")
    state = folder.state(run["path"][-1])
    try:
        done = states.verify_state(state)
    except Damaged as reason:
        raise UserError(f"{run['name']} cannot be exported: {reason}. `ablate run` makes it anew.") from None
    if done is None or done.checkpoint is None:
        why = "is not finished" if done is None else "diverged, so it has no weights at its end"
        raise UserError(f"{run['name']} {why}; there is nothing to export.")
    with writing(out.absolute()):
        staged = staging_folder(out.absolute())
        try:
            shutil.copytree(state.checkpoints / done.checkpoint / "model", staged, dirs_exist_ok=True)
            (staged / "README.md").write_text(_card(plan, run, state.id, done), encoding="utf-8")
            publish(staged, out.absolute())
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return out


def _run(folder: Folder, plan: dict[str, Any], which: str) -> dict[str, Any]:
    names = {arm["name"]: arm["same_as"] or arm["name"] for arm in plan["arms"]}
    arm, _, seeds = which.partition("/")
    if arm not in names:
        raise UserError(f"{folder.root} has no arm `{arm}`; {nearest(arm, names)}")
    runs = [run for run in plan["runs"] if run["arm"] == names[arm] and seeds in ("", run["seed_set"])]
    if len(runs) == 1:
        return dict(runs[0])
    choices = [run["name"] for run in plan["runs"] if run["arm"] == names[arm]]
    if not runs:
        raise UserError(f"arm `{arm}` has no seeds `{seeds}`; {nearest(which, choices)}")
    raise UserError(f"arm `{arm}` has {len(runs)} runs; name one of them: {', '.join(choices)}")


def _card(plan: dict[str, Any], run: dict[str, Any], state: str, done: states.Done) -> str:
    arm = next(arm for arm in plan["arms"] if arm["name"] == run["arm"])
    changes = [f"- `{path}`: `{json.dumps(value)}`" for path, value in arm["changes"].items()] or [
        "- nothing: the study as it is"
    ]
    seeds = ", ".join(f"{name} {value}" for name, value in run["seeds"].items())
    lines = [
        f"# {plan['study']}: {run['name']}",
        "",
        *([str(plan["question"]), ""] if plan.get("question") else []),
        f"Trained on {done.tokens:,} tokens in {done.step:,} updates; seeds: {seeds}.",
        "",
        "What this arm changes against `default`:",
        "",
        *changes,
        "",
        f"State `{state}`, weights `{done.weights}`.",
        "",
        "Open it with `transformers.AutoModelForCausalLM.from_pretrained`.",
    ]
    return "\n".join(lines) + "\n"
