"""`runs/<arm>/<seeds>/run.json`: a run's path, its points and its evaluations, as the plan names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.store.atomic import write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1


def is_merged(run: Mapping[str, Any]) -> bool:
    """Whether a run, as run.json or plan.json has it, is made of others' weights."""
    return bool(run.get("made_of"))


def states_behind(plan: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """The states on the paths of the runs that a merged run is made of, parents first; none for one that is trained."""
    parts = set(run.get("made_of") or ())
    return list(dict.fromkeys(state for one in plan["runs"] if one["name"] in parts for state in one["path"]))


def write_run(folder: Folder, run: Mapping[str, Any]) -> None:
    """Write a run's record unless an equal one is there."""
    value = {"schema": SCHEMA, **run}
    path = folder.run_json(str(run["arm"]), str(run["seed_set"]))
    try:
        if read_marked(path, SCHEMA) == value:
            return
    except (FileNotFoundError, Damaged):
        pass
    write_json(path, value)


def read_run(folder: Folder, arm: str, seed_set: str) -> dict[str, Any] | None:
    """A run's record, None when there is none or it is damaged (it can be rebuilt from the study)."""
    try:
        return read_marked(folder.run_json(arm, seed_set), SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
