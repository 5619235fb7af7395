"""Paths as people write them: `~` and `~ada` at their beginning stand for home folders."""

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
