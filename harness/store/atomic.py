"""Writing so that a reader sees the old file or the new one, and a crash loses neither.

Every write of the harness goes through here: whole files and appended lines by these functions, what libraries write
inside `writing`. A full disk, a quota or a folder that may not be written to becomes a `WriteFailed`, one paragraph.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from harness.store import processes
from harness.study.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_RUST = re.compile(r"\(os error (\d+)\)")


class WriteFailed(UserError):
    """A file could not be written. kind: `disk` (full, or over quota) or `forbidden`. folder: what stands in the way.

    Whatever raises it has left the old file, or none, in its place.
    """

    def __init__(self, kind: Literal["disk", "forbidden"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _no_fault(path: Path) -> None: ...


# Called with the final path before each write; tests put faults here.
before_write: Callable[[Path], None] = _no_fault


@contextlib.contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Around whatever writes `path`, a file or a folder of `needed` bytes. Raises WriteFailed; other errors pass."""
    try:
        before_write(final_name(path))
        yield
    except Exception as error:
        failed = explained(error, path, needed)
        if failed is None:
            raise
        raise failed from error


def explained(error: BaseException, path: Path, needed: int | None = None) -> WriteFailed | None:
    """What an error while writing `path` says to a person; None when it is neither a full disk nor a permission."""
    number = errno_of(error.__cause__ if isinstance(error, WriteFailed) and error.__cause__ is not None else error)
    if number in FULL:
        return WriteFailed("disk", _full(number, final_name(path), needed))
    if number in FORBIDDEN:
        return WriteFailed("forbidden", _forbidden(number, final_name(path)))
    return None


def errno_of(error: BaseException) -> int | None:
    """The system's error number in an exception, also where a library in Rust says it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _IN_RUST.search(str(error))
    return int(found[1]) if found else None


def _full(number: int | None, path: Path, needed: int | None) -> str:
    what = "your disk quota is used up" if number == errno.EDQUOT else "no space is left on the disk"
    size = "" if needed is None else f", {readable_bytes(needed)} are needed"
    try:
        status = os.statvfs(_existing(path))
        free = f"{readable_bytes(status.f_bavail * status.f_frsize)} of "
        free += f"{readable_bytes(status.f_blocks * status.f_frsize)} are free there"
    except OSError:
        free = "how much is free there cannot be told"
    return (
        f"{path} cannot be written, {what}: {free}{size}. Free some space and run the same command again; "
        "all finished work and the newest whole checkpoints are there, and it goes on from them."
    )


def _forbidden(number: int | None, path: Path) -> str:
    folder = _existing(path)
    if number == errno.EROFS:
        return f"{path} cannot be written: {folder} lies on a file system that is mounted read-only."
    try:
        status = folder.stat()
        whose = f" (owner {_name(folder.owner)}, group {_name(folder.group)}, mode {status.st_mode & 0o7777:04o})"
    except OSError:
        whose = ""
    return (
        f"{path} cannot be written: {folder} may not be written to by {processes.identity()['user']}{whose}. "
        "Have its owner share it, or choose another folder."
    )


def _name(of: Callable[[], str]) -> str:
    try:
        return of()
    except KeyError:
        return "without a name"


def _existing(path: Path) -> Path:
    """The nearest folder above `path` (or itself) that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path if path.is_dir() else path.parent


def readable_bytes(count: float) -> str:
    """512 B, 12.3 kB, 4.56 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`: written aside, fsynced, renamed. Makes parent folders. Raises WriteFailed."""
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = staged_name(path)
        # Created like any file of the user's: umask, set-group-id folders and default ACLs decide who may read it.
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as indented JSON; keys keep their order. NaN is refused."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises OSError or ValueError."""
    return json.loads(path.read_bytes())


def append_lines(path: Path, data: bytes) -> None:
    """Append whole lines in one write, so that lines of one writer never interleave. Raises WriteFailed.

    A half line that a full disk or a kill has left at the end is closed first: it would spoil the next one.
    """
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data
            written = file.write(data)
            while written < len(data):  # a short write: the disk is full at the next one, which raises
                written += file.write(data[written:])


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON line. Raises WriteFailed."""
    append_lines(path, (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSON-lines file; a torn line (its writer was killed, the disk was full) is left out."""
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


def staged_name(final: Path) -> Path:
    """A name beside `final` that can never be read as a result, and that tells which process it belongs to."""
    return final.with_name(f".{final.name}.{processes.tag()}.{secrets.token_hex(4)}.tmp")


def final_name(path: Path) -> Path:
    """`path` with every staged part of it replaced by the name that it is to get."""
    return Path(*(_final_part(part) for part in path.parts))


def _final_part(part: str) -> str:
    return part[1:].rsplit(".", 3)[0] if part.startswith(".") and part.endswith(".tmp") else part


def staging_folder(final: Path) -> Path:
    """A fresh folder beside `final` to be filled and then published. Raises WriteFailed."""
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = staged_name(final)
        staged.mkdir()
    return staged


def publish(staged: Path, final: Path, whole: Callable[[Path], bool] = lambda final: False) -> None:
    """Make `staged` durable and give it its name. What stood there before is removed, unless it is `whole`: then
    another process was faster, and it stays."""
    with writing(final):
        like_any_file(staged)
        fsync_tree(staged)
        while True:
            try:
                staged.rename(final)  # the system refuses it while a filled folder has the name
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if whole(final):
                    shutil.rmtree(staged)
                    return
                set_aside(final)
            else:
                fsync_folder(final.parent)
                return


def set_aside(folder: Path) -> None:
    """Remove a folder that is not whole, out of sight first: another process may be doing the same."""
    aside = staged_name(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def like_any_file(root: Path) -> None:
    """Give every file under `root` the mode that a new file gets there. Libraries make private ones (safetensors)."""
    probe = root / f".mode.{secrets.token_hex(4)}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            if path.stat().st_mode & 0o777 != mode:
                path.chmod(mode)


def sweep(root: Path, into: Callable[[Path], bool] = lambda folder: True) -> list[Path]:
    """Remove staged files and folders under `root` whose process, of this machine, is dead. Returns what went.

    into: whether to look inside a folder. What processes of other machines were writing is left alone: from here a
    dead one cannot be told from a slow one.
    """
    gone: list[Path] = []
    folders = [root]
    while folders:
        try:
            with os.scandir(folders.pop()) as scanned:
                entries = list(scanned)
        except OSError:
            continue
        for entry in entries:
            path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                if processes.abandoned(entry.name):
                    shutil.rmtree(path, ignore_errors=True) if is_folder else path.unlink(missing_ok=True)
                    gone.append(path)
            elif is_folder and into(path):
                folders.append(path)
    return gone
