"""Before anything is spent: what a person is told, and what is refused."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from harness.launch.observe import is_record
from harness.plan.lint import OF_RESULTS
from harness.plan.stale import stale_states
from harness.store import plans
from harness.store.layout import Folder
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared


def check_folder(folder: Folder, share: bool) -> None:
    """Refuse to mix shared and unshared states, which have different names, in one folder, and to train in a record."""
    if is_record(folder):
        root = folder.root
        raise UserError(
            f"{root} is the record of a study, without manifests and weights: nothing can be trained from it. Move it "
            f"aside (`mv {shlex.quote(str(root))} {shlex.quote(f'{root}.record')}`), or choose another folder with -o."
        )
    entries = list(folder.root.iterdir()) if folder.root.is_dir() else []
    if not [entry for entry in entries if not entry.name.startswith(".")]:
        return
    shared = bool((plans.read_plan(folder) or {}).get("share", True))
    if not share and shared:
        raise UserError(f"`--no-share` needs an empty folder, and {folder.root} is not; choose another with -o.")
    if share and not shared:
        raise UserError(
            f"{folder.root} was made with `--no-share`; add `--no-share`, or choose another folder with -o."
        )


def found_in_results(prepared: Prepared) -> list[str]:
    """What the folder's own results show before any more are made: states of other code, and lint of them."""
    plan = prepared.plan
    stale = stale_states(plan.segments, plan.observed)
    lines = []
    if stale and prepared.study.spec.stale == "reuse":
        first = next(iter(stale.values()))
        lines.append(
            f"{len(stale)} states were {first}; they are used as they are (`stale: reuse`). "
            "`--set stale=rerun` makes them again, `stale: refuse` stops"
        )
    found = [item for item in plan.lint if item.code in OF_RESULTS]
    return lines + [f"{item.level} {item.code}{f' [{item.arm}]' if item.arm else ''}: {item.message}" for item in found]


def check_stale(prepared: Prepared) -> None:
    """Raise UserError for states of other code where the study refuses them."""
    plan = prepared.plan
    stale = stale_states(plan.segments, plan.observed) if prepared.study.spec.stale == "refuse" else {}
    if stale:
        runs = [run.name for run in plan.runs if stale.keys() & set(run.path)]
        shown = ", ".join(runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")
        raise UserError(
            f"{len(stale)} states in {prepared.folder.root} were {next(iter(stale.values()))}, and the study says "
            f"`stale: refuse`. On their paths are the runs {shown}. Check out the code that made them, or choose "
            "`stale: rerun` (train them again) or `stale: reuse` (take them as they are)."
        )


def check(prepared: Prepared, yes: bool) -> None:
    """Refuse what cannot be compared, what other code has made (where the study says so), and what costs more than the
    study's budget (unless `yes`)."""
    check_stale(prepared)
    errors = [item for item in prepared.plan.lint if item.level == "error"]
    if errors:
        found = "\n".join(f"  {item.code}{f' [{item.arm}]' if item.arm else ''}: {item.message}" for item in errors)
        first = errors[0]
        raise UserError(
            f"the study cannot be compared as it is:\n{found}\n"
            f"Change it, or allow a finding by name: `compare.allow: {{{first.arm or 'default'}: [{first.code}]}}`."
        )
    budget, hours = prepared.study.spec.budget.gpu_hours, prepared.plan.totals["gpu_hours"]
    if budget is not None and hours is not None and hours > budget and not yes:
        raise UserError(
            f"the study takes about {hours:.3g} GPU-hours ({prepared.plan.totals['gpu_hours_basis']}), more than its "
            f"`budget.gpu_hours: {budget:g}`; raise the budget, or run it with `--yes`."
        )
