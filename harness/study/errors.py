"""What a user did wrong, said in one paragraph.

Everything that a user can get wrong raises a `UserError`; the command line prints it and leaves with 2. Any other
exception that reaches the command line is a defect of the harness.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake in the study, the call or the environment. `str(error)` is the whole paragraph."""


class StudyError(UserError):
    """A mistake in a study file, with its place: `file:line:column: message`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place
        self.message = message


class Mistake(Exception):
    """A mistake in a study whose place is known only as a path of keys, such as `("stages", "decay", "lr")`.

    Pure code raises it; whoever holds the document turns it into a `StudyError` with file, line and column.
    at_key: the key itself is wrong (unknown, not supported), so the place is the key's and not its value's.
    """

    def __init__(self, path: Sequence[str | int], message: str, at_key: bool = False) -> None:
        super().__init__(f"{'.'.join(map(str, path))}: {message}")
        self.path = tuple(path)
        self.message = message
        self.at_key = at_key


LISTED = 24  # valid names that a message lists at most


def nearest(word: str, valid: Iterable[str]) -> str:
    """A clause that helps: the nearest valid name when there is one, and the list of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    listed = ", ".join(names[:LISTED]) if names else "none"
    if len(names) > LISTED:
        listed += f" and {len(names) - LISTED} more"
    return (f"did you mean `{close[0]}`? " if close else "") + f"Valid here: {listed}."
