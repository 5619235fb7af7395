"""`plan.json`: the study as resolved, which call it answers, and the science that later plans are explained against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.store.atomic import write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1


def read_plan(folder: Folder) -> dict[str, Any] | None:
    """The plan that the folder was brought to last; None when there is none, or a damaged one. Raises UnknownSchema."""
    try:
        return read_marked(folder.plan_json, SCHEMA)
    except (FileNotFoundError, NotADirectoryError, Damaged):
        return None


def write_plan(folder: Folder, plan: Mapping[str, Any]) -> None:
    """Write plan.json unless an equal one is there."""
    value = {**plan, "schema": SCHEMA}
    if read_plan(folder) != value:
        write_json(folder.plan_json, value)
