"""Markers say that a folder is whole: written last, with the checksum of every file. Anything else can be rebuilt."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.atomic import read_json, sha256_file, write_json
from harness.study.errors import UserError

MARKER = "DONE.json"


class Damaged(Exception):
    """A folder or file that should be whole is not: missing, torn or altered. `str()` names it and says how."""


class UnknownSchema(UserError):
    """The file was written by another version. It is not damage: nothing may be made anew or removed because of it."""


class Unreadable(UserError):
    """The file is there and cannot be read: permissions, or a disk or network that fails. It may well be whole."""


@dataclass(frozen=True)
class FileRecord:
    sha256: str
    bytes: int


def read_marked(path: Path, schema: int, older: Collection[int] = ()) -> dict[str, Any]:
    """The JSON object in `path`, which must carry `schema`, or one of `older`, which its reader knows as well.

    Raises FileNotFoundError when it is not there, Damaged when it is no such object, and the UserErrors UnknownSchema
    and Unreadable.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if not isinstance(found, int) or isinstance(found, bool):
        raise Damaged(f"{path} is not a JSON object with a schema number")
    if found not in older:
        check_schema(path, found, schema)
    return dict(value)


def check_schema(path: Path, found: int, schema: int) -> None:
    """Raise UnknownSchema unless the number that a file carries is the one that this version reads."""
    if found != schema:
        age, advice = ("a newer", "update ablate") if found > schema else ("an older", "use the version that wrote it")
        raise UnknownSchema(
            f"{path} was written by {age} version of ablate (schema {found}, this one reads {schema}): {advice}. "
            "Nothing was changed."
        )


def unreadable(path: Path, error: OSError) -> Unreadable:
    """What to say of a file that is there and cannot be read."""
    return Unreadable(f"{path} cannot be read ({error.strerror or error}); nothing was changed.")


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
        size = size_of(path).st_size
        if size != record["bytes"]:
            raise Damaged(f"{path} has {size} bytes, its marker says {record['bytes']}")
        if contents and hash_of(path) != record["sha256"]:
            raise Damaged(f"{path} was altered: its checksum is not the one in its marker")


def size_of(path: Path) -> os.stat_result:
    """`stat` of a file that should be there. Raises Damaged when it is not, Unreadable when that cannot be told."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from None


def hash_of(path: Path) -> str:
    """SHA-256 of a file that should be there. Raises Damaged when it is not, Unreadable when it cannot be read."""
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from None
