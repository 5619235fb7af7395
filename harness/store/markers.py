"""Markers say that a folder is whole: written last, with the checksum of every file. Anything else can be rebuilt."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.atomic import read_json, sha256_file, write_json

MARKER = "DONE.json"


class Damaged(Exception):
    """A folder or file that should be whole is not: missing, torn or altered. `str()` names it and says how."""


class UnknownSchema(Damaged):
    """The file was written by a later version."""


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    bytes: int


def read_marked(path: Path, schema: int) -> dict[str, Any]:
    """The JSON object in `path`, which must carry `schema`. Raises Damaged; FileNotFoundError when it is not there."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    if not isinstance(value, dict) or "schema" not in value:
        raise Damaged(f"{path} is not a JSON object with a schema number")
    if value["schema"] != schema:
        raise UnknownSchema(
            f"{path} has schema {value['schema']}, this version reads {schema}; use the version that wrote it"
        )
    return value


def checksum_files(root: Path) -> dict[str, FileRecord]:
    """Checksum and size of every file under `root` but the marker, by relative path, sorted."""
    records = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if relative != MARKER:
                records[relative] = FileRecord(sha256_file(path), path.stat().st_size)
    return dict(sorted(records.items()))


def write_marker(root: Path, schema: int, fields: Mapping[str, Any], files: Mapping[str, FileRecord]) -> None:
    """Say that `root` is whole. Call it after everything in it is durable."""
    table = {name: {"sha256": record.sha256, "bytes": record.bytes} for name, record in files.items()}
    write_json(root / MARKER, {"schema": schema, **fields, "files": table})


def verify_files(root: Path, files: Mapping[str, Mapping[str, Any]], contents: bool = True) -> None:
    """Raise Damaged unless every file is there with its size, and (contents) its checksum."""
    for name, record in files.items():
        path = root / name
        try:
            size = path.stat().st_size
        except OSError:
            raise Damaged(f"{path} is missing") from None
        if size != record["bytes"]:
            raise Damaged(f"{path} has {size} bytes, its marker says {record['bytes']}")
        if contents and sha256_file(path) != record["sha256"]:
            raise Damaged(f"{path} was altered: its checksum is not the one in its marker")
