"""Writing so that a reader sees the old file or the new one, and a crash loses neither."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`: written aside, fsynced, renamed. Makes parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are shared like any other file of the user's.
        Path(staged).chmod(0o666 & ~_umask())
        Path(staged).replace(path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; keys keep their order. NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises OSError or ValueError."""
    return json.loads(path.read_bytes())


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON line in one write, so that lines of one writer never interleave or tear within a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with path.open("ab") as file:
        file.write(line)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; a torn last line (its writer was killed) is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(root: Path) -> None:
    """Make every file and folder under `root` durable."""
    for folder, _, files in os.walk(root):
        for name in files:
            handle = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_folder(Path(folder))


def staging_folder(final: Path) -> Path:
    """A fresh folder beside `final` to be filled and then published; its name can never be read as a result."""
    final.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".tmp"))
    staged.chmod(0o777 & ~_umask())
    return staged


def publish(staged: Path, final: Path) -> None:
    """Make `staged` durable and give it its name. What stood there before (never valid) is removed first."""
    fsync_tree(staged)
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    fsync_folder(final.parent)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
