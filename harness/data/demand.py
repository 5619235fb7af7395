"""What a path asks of its sources, and whether they have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from harness.data.pieces import BEST_FIT, DataPiece
from harness.plan.blend import drawn
from harness.plan.exposure import Views, epochs
from harness.study.errors import UserError


def requested_tokens(pieces: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens that the path draws from each source, to the row: what the loader will serve. Pure.

    pieces: as in segment.json, from token 0 on.
    """
    total: dict[str, int] = {}
    for tokens in requested_by_piece(pieces):
        for name, count in tokens.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def requested_by_piece(pieces: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """`requested_tokens` of each piece by itself."""
    asked = []
    blend_from: int | None = None
    rows_before = 0  # rows since the blend's counters started
    for piece in map(DataPiece.read, pieces):
        rows = (piece.end - piece.start) // piece.length
        if piece.blend_from is None:
            asked.append({piece.names[0]: rows * piece.length})
            continue
        if piece.blend_from != blend_from:
            blend_from, rows_before = piece.blend_from, 0
        before, after = _drawn(piece.shares, rows_before), _drawn(piece.shares, rows_before + rows)
        counts = (end - start for start, end in zip(before, after, strict=True))
        asked.append({name: n * piece.length for name, n in zip(piece.names, counts, strict=True)})
        rows_before += rows
    return asked


@lru_cache(maxsize=65536)
def _drawn(shares: tuple[Fraction, ...], rows: int) -> tuple[int, ...]:
    return tuple(drawn(shares, rows))


@dataclass(frozen=True, slots=True)
class Shortage:
    """A source that a path would read more often than allowed.

    asked, allowed: tokens over the path. epochs: how often its documents are served, over all views of the pool.
    padded: rows are packed best-fit, whose padding is among the tokens, so it is at most that often. stage,
    largest_share: in this stage, the last that draws on the source and could be lowered enough, its share may be at
    most this when all else stays.
    """

    source: str
    asked: int
    allowed: int
    epochs: Fraction
    max_epochs: Fraction
    stage: str | None
    largest_share: Fraction | None
    padded: bool = False

    def __str__(self) -> str:
        remedy = f"at most {self.allowed:,} tokens of it fit"
        if self.stage is not None and self.largest_share is not None:
            share = int(self.largest_share * 10000) / 10000  # downwards, so that it fits
            remedy += f", a share of {share:g} in stage `{self.stage}` when all else stays"
        return (
            f"source `{self.source}`: {self.asked:,} tokens are asked for, "
            f"{'with padding at most ' if self.padded else ''}{float(self.epochs):.3g} epochs, and "
            f"max_epochs is {float(self.max_epochs):g}; {remedy}"
        )


def shortages(
    pieces: Sequence[Mapping[str, Any]],
    pool_tokens: Mapping[str, int],
    max_epochs: Mapping[str, Fraction | float | None],
    shared: Views = MappingProxyType({}),
) -> list[Shortage]:
    """Sources that the path would read more than `max_epochs` times (None or absent: no cap). Pure.

    pool_tokens: training tokens by source (`train.tokens` of its manifest). An epoch is a whole permutation of the
    pool, so tokens asked / tokens in the pool is how often its documents are served. shared: which sources hold the
    documents of which; what those serve counts, too.
    """
    asked = requested_tokens(pieces)
    served = epochs(asked, pool_tokens, shared)
    found = []
    for name, tokens in asked.items():
        cap = max_epochs.get(name)
        if cap is None:
            continue
        limit = Fraction(str(cap))
        by_others = served[name] - Fraction(tokens, pool_tokens[name])
        allowed = max(0, int((limit - by_others) * pool_tokens[name]))
        if tokens > allowed:
            stage, share = _largest_share(pieces, name, allowed)
            padded = any(DataPiece.read(piece).packing == BEST_FIT for piece in pieces)
            found.append(Shortage(name, tokens, allowed, served[name], limit, stage, share, padded))
    return found


def check_demand(
    pieces: Sequence[Mapping[str, Any]],
    pool_tokens: Mapping[str, int],
    max_epochs: Mapping[str, Fraction | float | None],
    run: str,
    shared: Views = MappingProxyType({}),
) -> None:
    """UserError when a path asks for more than its sources may give. run: whose path it is, for the message."""
    found = shortages(pieces, pool_tokens, max_epochs, shared)
    if found:
        raise UserError(f"{run}: " + "; ".join(map(str, found)))


def _largest_share(pieces: Sequence[Mapping[str, Any]], name: str, allowed: int) -> tuple[str | None, Fraction | None]:
    by_stage: dict[str, tuple[int, int]] = {}  # stage → (tokens of the source, tokens of the stage)
    for piece, tokens in zip(pieces, requested_by_piece(pieces), strict=True):
        mine, all_tokens = by_stage.get(piece["stage"], (0, 0))
        by_stage[piece["stage"]] = (
            mine + tokens.get(name, 0),
            all_tokens + piece["end"] - piece["start"],
        )
    total = sum(mine for mine, _ in by_stage.values())
    for stage, (mine, all_tokens) in reversed(by_stage.items()):
        left = allowed - (total - mine)
        if mine and left > 0:
            return stage, Fraction(left, all_tokens)
    return None, None
