"""Files that the command line reads or writes beside the results: curves, and the call that a folder answers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.launch.run import ExecutorName, Options
from harness.launch.status import read_plan
from harness.plan import curves
from harness.store.layout import Folder
from harness.store.places import remembered
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.study import Study


def write_curves(study: Study, path: Path, every: int) -> None:
    """One row per (arm, optimizer update) as CSV; arms whose length is not known yet have none.

    Raises UserError when the file cannot be written.
    """
    arms = [arm for arm in study.arms if arm.name not in study.unsolved]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(curves.header(study))
            writer.writerows(curves.rows(study, arms, every))
    except OSError as error:
        raise UserError(f"--curves: {path} cannot be written ({error.strerror})") from None


def recorded_options(root: Path) -> Options:
    """The call that a results folder answers. Raises UserError without one."""
    plan = read_plan(Folder(root))
    asked = plan.get("asked")
    if not isinstance(asked, dict):
        raise UserError(f"{root / 'plan.json'} does not say which study it belongs to; `ablate run` writes it anew.")
    study = remembered(root, asked["file"])
    if not study.is_file():
        raise UserError(
            f"the study of {root} was {study}, which is not there any more; "
            f"`ablate run STUDY.yaml -o {root}` with its new place says where it is."
        )
    return Options(
        study,
        root,
        tuple(asked.get("set") or ()),
        share=bool(plan["share"]),
        yes=bool(asked.get("yes", False)),
        suites=tuple(asked.get("suites") or ()),
    )


def evaluation_options(root: Path, suites: Sequence[str], executor: ExecutorName, jobs: int | None) -> Options:
    """The call that evaluates a results folder: its own study, with more suites. Raises UserError without one."""
    before = recorded_options(root)
    overrides = list(before.overrides)
    if suites:
        wanted = list(dict.fromkeys([*read_plan(Folder(root))["eval"]["suites"], *suites]))
        overrides.append(f"eval.suites=[{', '.join(wanted)}]")
    return replace(
        before,
        overrides=tuple(overrides),
        executor=executor,
        jobs=jobs,
        train=False,
        suites=tuple(suites),
    )
