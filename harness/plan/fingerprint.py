"""Names of states: a hash of the science of the path over [0, b), never of where it is cut.

The name is a chain. Let pieces 1..n of a merged path end at e_1 < e_2 < ...; then

    state(0)            = H(base)
    state(b in piece i) = H(state(e_{i-1}), key_i, data seed_i, b)

Within a piece every b hangs on the piece's own beginning, so a cut inside it changes no name; adjacent pieces of one
description are merged before, so neither does a boundary at which nothing changes. A constant rate has no end in its
key: two trunks of different lengths agree as far as both go. A decay has its start and end in its key: two decays
agree only when they are the same decay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from harness.plan.canonical import digest
from harness.plan.science import Piece

LENGTH = 32  # hexadecimal digits: 128 bits


def base_state(science: Mapping[str, Any]) -> str:
    """The name of the state before token 0."""
    return digest(dict(science))[:LENGTH]


def state_within(boundary: str, piece: Piece, data_seed: int, tokens: int) -> str:
    """The name of the state after `tokens` (piece.start < tokens <= piece.end); `boundary`: that at piece.start."""
    return hashlib.sha256(f"{boundary}\n{piece.key}\n{data_seed}\n{tokens}".encode()).hexdigest()[:LENGTH]


def state_at(base: str, pieces: Sequence[Piece], data_seeds: Sequence[int], tokens: int) -> str:
    """The name of the state after `tokens` of a path, 0 <= tokens <= the path's end."""
    name = base
    for piece, seed in zip(pieces, data_seeds, strict=True):
        if tokens <= piece.start:
            break
        name = state_within(name, piece, seed, min(tokens, piece.end))
    return name
