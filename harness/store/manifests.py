"""Manifests: what `base` and each source resolved to, so that planning needs no weights, no data and no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.plan.canonical import digest
from harness.store.atomic import write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1


def read_base(folder: Folder) -> dict[str, Any] | None:
    """The base's manifest, None when the base was never resolved. A damaged one counts as never."""
    return _read(folder.base_manifest)


def read_source(folder: Folder, name: str) -> dict[str, Any] | None:
    """A source's manifest, None when the source was never resolved."""
    return _read(folder.source_manifest(name))


def base_identity(manifest: Mapping[str, Any], optimizer: str) -> str | None:
    """What names the base of an arm whose `base.optimizer` is `optimizer`: its weights, and with `carried` the state of
    the optimizer beside them. None for a state that was not looked for when the base was resolved."""
    identity = str(manifest["identity"])  # of all that was resolved
    if manifest["optimizer"] is None:
        return None if optimizer == "carried" else identity
    if optimizer == "carried":
        return identity
    return files_identity(file for file in manifest["files"] if file["path"] != manifest["optimizer"])


def files_identity(files: Iterable[Mapping[str, Any]]) -> str:
    """The content of files, {"path", "sha256"} each, by name: where they lie says nothing."""
    return digest({Path(file["path"]).name: file["sha256"] for file in files})


def write_base(folder: Folder, manifest: dict[str, Any]) -> None:
    write_json(folder.base_manifest, {**manifest, "schema": SCHEMA})


def write_source(folder: Folder, name: str, manifest: dict[str, Any]) -> None:
    write_json(folder.source_manifest(name), {**manifest, "schema": SCHEMA})


def _read(path: Any) -> dict[str, Any] | None:
    try:
        return read_marked(path, SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
