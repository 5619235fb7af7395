"""Outside models: `models/<name>.json`, one for each model that a person has added to the table and no arm has made.

What it scored lies under `evals/<weights>/` as every other model's results do. Without its file it is no row any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.store.atomic import write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1
NEEDED = {
    "name": str,
    "model": str,
    "weights": str,
    "identity": str,
    "tokenizer": dict,
    "parameters": int,
    "tasks": list,
}


def read_model(folder: Folder, name: str) -> dict[str, Any] | None:
    """The record of an outside model, None when there is none. Raises Damaged, UnknownSchema."""
    path = folder.model_json(name)
    try:
        record = read_marked(path, SCHEMA)
    except FileNotFoundError:
        return None
    for key, kind in NEEDED.items():
        if not isinstance(record.get(key), kind):
            raise Damaged(f"{path} has no usable `{key}`; `ablate eval --model` writes it anew")
    if record["name"] != name:
        raise Damaged(f"{path} is of the model `{record['name']}`; the two names must be one")
    return record


def read_models(folder: Folder) -> tuple[list[dict[str, Any]], list[str]]:
    """Every outside model in name order, and a sentence for each record that is damaged. Raises UnknownSchema."""
    found, damage = [], []
    for path in sorted(folder.models.glob("*.json")) if folder.models.is_dir() else ():
        if path.name.startswith("."):
            continue
        try:
            record = read_model(folder, path.stem)
        except Damaged as reason:
            damage.append(str(reason))
            continue
        if record is not None:
            found.append(record)
    return found, damage


def write_model(folder: Folder, record: Mapping[str, Any]) -> None:
    """Write a model's record unless an equal one is there."""
    value = {**record, "schema": SCHEMA}
    try:
        if read_model(folder, str(record["name"])) == value:
            return
    except Damaged:
        pass
    write_json(folder.model_json(str(record["name"])), value)
