"""The report is built when what it rests on has changed, and left alone when not: a second run imports little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.launch.code import tree_hash
from harness.plan.canonical import digest
from harness.store import models
from harness.store.atomic import write_json
from harness.store.markers import Damaged, read_marked

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared

NAME = ".report.json"
SCHEMA = 1


def report(prepared: Prepared, note: Callable[[str], None]) -> Path | None:
    """Build the report of a folder, unless the one that is there was built from the same. Returns its page."""
    folder = prepared.folder
    page = folder.report / "index.html"
    mark = {"schema": SCHEMA, "of": _rests_on(prepared)}
    if page.exists() and _read(folder.root / NAME) == mark:
        return page
    from analysis.report import build  # imports scipy and matplotlib

    note("writing the report")
    built = build(folder.root)
    write_json(folder.root / NAME, mark)
    return built


def _rests_on(prepared: Prepared) -> str:
    observed = prepared.seen.observed
    outside, damage = models.read_models(prepared.folder)
    rows = [[model["name"], model["weights"], model["tasks"]] for model in outside]
    return digest(
        {
            "plan": prepared.plan.to_json()["runs"],
            "file": prepared.study.text,
            "declared": digest(prepared.study.resolved),  # with includes and `--set`
            "resolved": prepared.plan.record()["science"],
            "compare": prepared.study.spec.compare.model_dump(mode="json"),
            "states": sorted([name, seen.outcome, seen.weights] for name, seen in observed.states.items()),
            "lint": [vars(item) for item in prepared.plan.lint],
            "evaluations": sorted(map(list, observed.evaluations)),
            "asked": [[item.run, item.label, item.task.key] for item in prepared.plan.evals],
            "code": tree_hash(),
            **({"models": [rows, damage]} if rows or damage else {}),
        }
    )


def _read(path: Path) -> object:
    try:
        return read_marked(path, SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
