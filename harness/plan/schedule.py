"""Learning-rate schedules as pieces of a path.

A piece is a mapping that names its shape, its parameters and the tokens over which it runs:

    {"shape": "constant", "value": v}
    {"shape": "linear" | "cosine" | "1-sqrt", "from": a, "to": b, "start": s, "end": e}      (a decay)
    {"shape": "linear", "from": a, "to": b, "start": s, "end": e, "at": "end"}               (a warm-up)

`rate(piece, t, batch)` is the rate of the update that consumes tokens [t, t + batch). Endpoints: a decay is evaluated
at the first of those tokens, so its first update has exactly `from`, and `to` is the rate that the next update would
have (a decay to 0 spends no batch on a rate of 0). A warm-up is evaluated at the end of them, so its first update is
not wasted and its last one has exactly `to`. `ablate plan --curves` shows the values.

With x in [0, 1] the fraction of the piece that lies behind, the rate is r from + (1 - r) to, where r is

    linear   1 - x                  decay to zero: Bergsma et al., 2502.15938
    cosine   (1 + cos(pi x)) / 2    Loshchilov & Hutter, 1608.03983
    1-sqrt   1 - sqrt(x)            Haegele et al., 2405.18392
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.study.errors import Mistake
from harness.study.treatment import LearningRate, Stage, Treatment

Piece = Mapping[str, Any]


def rate(piece: Piece, t: int, batch_tokens: int) -> float:
    """The rate of the update that consumes tokens [t, t + batch_tokens) of the path, inside `piece`."""
    shape = piece["shape"]
    if shape == "constant":
        return float(piece["value"])
    a, b, start, end = piece["from"], piece["to"], piece["start"], piece["end"]
    position = t + batch_tokens if piece.get("at") == "end" else t
    x = (position - start) / (end - start)
    left = _remaining(shape, x)
    return float(a * left + b * (1.0 - left))  # exactly a at the beginning and exactly b at the end


def _remaining(shape: str, x: float) -> float:
    """The share of `from - to` that is left at x; exactly 1 at x = 0 and 0 at x = 1 for every shape."""
    if shape == "linear":
        return 1.0 - x
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * x))
    if shape == "1-sqrt":
        return 1.0 - math.sqrt(x)
    raise ValueError(f"unknown schedule shape {shape!r}")


def end_rate(piece: Piece) -> float:
    """The rate at which a piece leaves off: where the next one begins by default."""
    return float(piece["value"] if piece["shape"] == "constant" else piece["to"])


def schedule(treatment: Treatment) -> list[tuple[int, int, Piece]]:
    """The whole path's schedule: (start, end, piece) in tokens, contiguous from 0. Zero-length pieces are left out.

    Raises Mistake where a rate is needed that nothing declares.
    """
    if treatment.lr is not None:
        first = treatment.stages[0]
        return _stage_pieces(treatment.lr, 0, treatment.tokens, None, treatment, first.optimizer.lr, ("lr",))
    pieces: list[tuple[int, int, Piece]] = []
    start = 0
    ended: float | None = None  # the rate at which the previous stage ended
    for stage in treatment.stages:
        pieces += stage_schedule(treatment, stage, start, ended)
        start, ended = start + stage.tokens, end_rate(pieces[-1][2])
    return pieces


def stage_schedule(treatment: Treatment, stage: Stage, start: int, ended: float | None) -> list[tuple[int, int, Piece]]:
    """The part of `schedule` that belongs to a stage from `start` on, the one before it having `ended` at a rate."""
    assert stage.lr is not None, "checked when the study was resolved"
    place = ("stages", stage.name, "lr")
    return _stage_pieces(stage.lr, start, start + stage.tokens, ended, treatment, stage.optimizer.lr, place)


def _stage_pieces(
    lr: LearningRate,
    start: int,
    end: int,
    ended: float | None,
    treatment: Treatment,
    peak: float,
    place: tuple[str, ...],
) -> list[tuple[int, int, Piece]]:
    begin = _start_rate(lr, ended, treatment, peak, place)
    pieces: list[tuple[int, int, Piece]] = []
    middle = start + lr.warmup
    if lr.warmup:
        warmup = {"shape": "linear", "from": 0.0, "to": begin, "start": start, "end": middle, "at": "end"}
        pieces.append((start, middle, warmup))
    if middle < end:
        if lr.shape == "constant" or begin == lr.end:  # a decay that goes nowhere is the constant that it is
            body: dict[str, Any] = {"shape": "constant", "value": begin}
        else:
            assert lr.end is not None
            body = {"shape": lr.shape, "from": begin, "to": lr.end, "start": middle, "end": end}
        pieces.append((middle, end, body))
    return pieces


def _start_rate(
    lr: LearningRate, ended: float | None, treatment: Treatment, peak: float, place: tuple[str, ...]
) -> float:
    if lr.start == "base":
        if treatment.base.lr is None:
            raise Mistake((*place, "from"), "`from: base` needs `base.lr`, the rate at which the base was left.")
        return treatment.base.lr
    if lr.start is not None:
        return lr.start
    return peak if ended is None else ended
