"""Places that people name: home folders (`~`, `~ada`) at the beginning of a path, and files where folders should be."""

from __future__ import annotations

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
    """Raise UserError where a file stands in the place of `folder`, or of one above it."""
    for place in (folder, *folder.absolute().parents):
        if place.is_file():
            where = "" if place == folder else f", so {folder} cannot lie below it"
            raise UserError(f"{place} is a file{where}; expected a folder, or a name that is not there yet.")
