"""Places that people name: home folders (`~`, `~ada`) at the beginning of a path, files where folders should be, and
files that a folder remembers."""

from __future__ import annotations

import os
from pathlib import Path

from harness.study.errors import UserError


def expanded(path: str | Path) -> Path:
    """`path` with the home folder in the place of a leading `~` or `~user`. Raises UserError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        first = Path(path).parts[0]
        whose = "this user has no home folder" if first == "~" else f"there is no user `{first[1:]}` here"
        raise UserError(
            f"`{path}`: {whose}, for which `{first}` stands; expected a whole path, or `./{first}` for a name that "
            "begins so."
        ) from None


def check_folder_place(folder: Path) -> None:
    """Raise UserError where a file stands in the place of `folder`, or of one above it, and for a name that is no text:
    weights could not be written there."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        shown = str(folder).encode(errors="backslashreplace").decode()
        raise UserError(f"{shown} is no valid UTF-8; expected a folder with another name.") from None
    for place in (folder, *folder.absolute().parents):
        if place.is_file():
            where = "" if place == folder else f", so {folder} cannot lie below it"
            raise UserError(f"{place} is a file{where}; expected a folder, or a name that is not there yet.")


def from_folder(folder: Path, file: Path) -> str:
    """`file` as `folder` remembers it: relative to where the folder really lies. A folder that is reached through a
    link (`results` on a scratch disk) has two names, and `..` after one of them is not what it is after the other."""
    return os.path.relpath(file.absolute().parent.resolve() / file.name, folder.resolve())


def remembered(folder: Path, relative: str) -> Path:
    """The file that `from_folder` gave, which need not be there, by the shortest name that leads to it. Folders of
    before remember it relative to the name by which they were reached."""
    real = Path(os.path.normpath(folder.resolve() / relative))
    named = Path(os.path.normpath(folder / relative))
    return named if named.is_file() and (not real.is_file() or named.samefile(real)) else real
