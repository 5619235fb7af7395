"""Which checkpoints inside a segment stay, as `keep.checkpoints` says. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def before(pieces: Sequence[Mapping[str, Any]], tokens: int) -> int:
    """Where the update began that ended at `tokens` of the path."""
    for piece in pieces:
        if piece["start"] <= tokens - 1 < piece["end"]:
            return tokens - int(piece["science"]["batch_tokens"])
    raise ValueError(f"no piece of the path holds token {tokens - 1}")


def reaches_multiple(start: int, tokens: int, keep: int | str) -> bool:
    """Whether an update from `start` to `tokens` is the first at or past a multiple of `keep`; never for a word."""
    return isinstance(keep, int) and tokens // keep > start // keep


def multiples(pieces: Sequence[Mapping[str, Any]], there: Collection[int], keep: int | str) -> set[int]:
    """Of the checkpoints `there`, those that `keep: every N` holds on to, by the path tokens they were written at."""
    return {at for at in there if at and reaches_multiple(before(pieces, at), at, keep)}
