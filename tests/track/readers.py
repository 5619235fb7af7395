"""What a tracker holds, read back by its own means: run name → rows, each with its step metric and values."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

Rows = list[dict[str, float]]


def wandb_files(folder: Path) -> list[Path]:
    return sorted((folder / "track" / "wandb-offline" / "wandb").glob("offline-run-*/run-*.wandb"))


def wandb_records(file: Path) -> list[dict[str, Any]]:
    """The records of a `.wandb` file, read by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def wandb_offline(folder: Path) -> dict[str, Rows]:
    found = {}
    for file in wandb_files(folder):
        records = wandb_records(file)
        name = next(record["run"]["display_name"] for record in records if record["type"] == "run")
        assert name not in found, "a run has one folder"
        found[name] = [_numbers(record["history"]["item"]) for record in records if record["type"] == "history"]
    return found


def tensorboard(folder: Path) -> dict[str, Rows]:
    found = {}
    root = folder / "track" / "tensorboard"
    for file in root.rglob("events.*"):
        rows: Rows = []
        for event in EventFileLoader(str(file)).Load():
            values = {value.tag: _scalar(value) for value in event.summary.value if _scalar(value) is not None}
            if values:
                step = (
                    "eval_tokens"
                    if any("/" in name and name.startswith(("bpb", "eval")) for name in values)
                    else "tokens"
                )
                rows.append({step: event.step, **values})
        name = str(file.parent.relative_to(root))
        assert name not in found, "a run has one event file"
        found[name] = rows
    return found


def _scalar(value: Any) -> float | None:
    if value.metadata.plugin_data.plugin_name == "scalars" or value.HasField("simple_value"):
        return float(value.tensor.float_val[0]) if value.HasField("tensor") else float(value.simple_value)
    return None


def trackio(project: str) -> dict[str, Rows]:
    """Of a project that is not named as the study: its runs' names begin with the study's."""
    from trackio.sqlite_storage import SQLiteStorage  # not before TRACKIO_DIR is set: it is read once, here

    found: dict[str, Rows] = {}
    with closing(sqlite3.connect(SQLiteStorage.get_project_db_path(project))) as database:
        for name, metrics in database.execute("SELECT run_name, metrics FROM metrics ORDER BY step"):
            found.setdefault(name.removeprefix("tracked/"), []).append(_numbers(json.loads(metrics)))
    return found


def _numbers(item: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in item.items() if not name.startswith("_")}
