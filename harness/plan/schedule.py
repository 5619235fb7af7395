"""Learning-rate schedules as pieces of a path.

A piece is a mapping that names its shape, its parameters and the tokens over which it runs:

    {"shape": "constant", "value": v}
    {"shape": "linear" | ..., "from": a, "to": b, "start": s, "end": e}                      (a decay)
    {"shape": "linear", "from": a, "to": b, "start": s, "end": e, "at": "end"}               (a warm-up)
    {"shape": "inverse-sqrt", "from": a, "start": s, "seen": n}                              (open-ended)
    {"shape": "power", "from": a, "exponent": c, "start": s, "seen": n}                      (open-ended)

`rate(piece, t, batch)` is the rate of the update that consumes tokens [t, t + batch). Endpoints: a decay is evaluated
at the first of those tokens, so its first update has exactly `from`, and `to` is the rate that the next update would
have (a decay to 0 spends no batch on a rate of 0). A warm-up is evaluated at the end of them, so its first update is
not wasted and its last one has exactly `to`. `ablate plan --curves` shows the values.

Decays. With x = (t - s) / (e - s), the fraction of the piece that lies behind, the rate is r from + (1 - r) to, r being

    linear       1 - x                  decay to zero: Bergsma et al., 2502.15938
    cosine       (1 + cos(pi x)) / 2    Loshchilov & Hutter, 1608.03983, eq. 5
    1-sqrt       1 - sqrt(x)            Haegele et al., 2405.18392
    1-square     1 - x^2                Haegele et al., 2405.18392, among the cooldowns compared there

and for `exponential` it is from^(1 - x) to^x, a straight line in log rate (the WSD decay of the multi-power law,
Luo et al., 2503.12811; MiniCPM's 0.5^(t/T), 2404.06395, is the same curve), so neither end may be 0.

Open-ended decays have no end in their parameters: like constants, trunks of different lengths are the same as far as
both go, and decays branch off them. Their clock is the tokens of all training, n(t) = seen + t, where seen is
`base.tokens_seen` (0 from scratch), so that a decay goes on as if it had begun with the pre-training of the base:

    inverse-sqrt    from (n(s) / n(t))^(1/2)      Vaswani et al., 1706.03762, eq. 3; with seen = 0 the reference n(s)
                                                  is the end of the warm-up, as there
    power           from (n(t) / n(s))^exponent   Power scheduler, Shen et al., 2408.13359: min(peak, batch a n^b) with
                                                  b = -0.51, the default; `from` takes the place of batch a n(s)^b

A multi-step schedule is constants: [start, m1) at `from`, then factor i times `from` from milestone i on. Milestones
are fractions of the whole schedule, warm-up included, at the nearest whole batch; the defaults, 0.8 and 0.9 with
factors 0.316 and 0.1, are DeepSeek LLM's (2401.02954, section 2.3: 8-1-1).

A stage without `from` begins at the rate at which the one before ended. When that one was open-ended and the stage
goes on with the same shape, parameters and no warm-up, it is the same piece, and nothing happens at the boundary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from harness.study.errors import Mistake
from harness.study.treatment import OPEN_SHAPES, LearningRate, Stage, Treatment
from harness.study.units import exact

Piece = Mapping[str, Any]
Timed = tuple[int, int, Piece]  # start and end in tokens of the path, and the piece that holds between them
Place = tuple[str, ...]


def rate(piece: Piece, t: int, batch_tokens: int) -> float:
    """The rate of the update that consumes tokens [t, t + batch_tokens) of the path, inside `piece`."""
    shape = piece["shape"]
    if shape == "constant":
        return float(piece["value"])
    if shape in OPEN_SHAPES:
        return _open(piece, t)
    a, b, start, end = piece["from"], piece["to"], piece["start"], piece["end"]
    position = t + batch_tokens if piece.get("at") == "end" else t
    x = (position - start) / (end - start)
    if shape == "exponential":
        return float(a ** (1.0 - x) * b**x)  # exactly a at the beginning and exactly b at the end
    left = remaining(shape, x)
    return float(a * left + b * (1.0 - left))  # the same


def remaining(shape: str, x: float) -> float:
    """The share of `from - to` that is left at x; exactly 1 at x = 0 and 0 at x = 1 for every shape."""
    if shape == "linear":
        return 1.0 - x
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * x))
    if shape == "1-sqrt":
        return 1.0 - math.sqrt(x)
    if shape == "1-square":
        return 1.0 - x * x
    raise ValueError(f"unknown schedule shape {shape!r}")


def _open(piece: Piece, t: int) -> float:
    """An open-ended decay at token `t` of the path; exactly `from` at its start."""
    before, now = piece["seen"] + piece["start"], piece["seen"] + t
    if piece["shape"] == "inverse-sqrt":
        return float(piece["from"] * math.sqrt(before / now))
    return float(piece["from"] * (now / before) ** piece["exponent"])


def end_rate(piece: Piece, end: int | None = None) -> float:
    """The rate at which a piece leaves off: where the next one begins by default.

    end: the token of the path at which it is left; an open-ended piece does not know it.
    """
    if piece["shape"] == "constant":
        return float(piece["value"])
    if piece["shape"] in OPEN_SHAPES:
        if end is None:
            raise ValueError(f"{piece['shape']} has no end of its own")
        return _open(piece, end)
    return float(piece["to"])


def schedule(treatment: Treatment) -> list[Timed]:
    """The whole path's schedule: (start, end, piece) in tokens, contiguous from 0. Zero-length pieces are left out.

    Raises Mistake where a rate is needed that nothing declares.
    """
    if treatment.lr is not None:
        first = treatment.stages[0]
        return _pieces(treatment.lr, 0, treatment.tokens, None, treatment, first.optimizer.lr, ("lr",))
    pieces: list[Timed] = []
    start = 0
    before: Piece | None = None
    for stage in treatment.stages:
        pieces += stage_schedule(treatment, stage, start, before)
        start, before = start + stage.tokens, pieces[-1][2]
    return pieces


def stage_schedule(treatment: Treatment, stage: Stage, start: int, before: Piece | None) -> list[Timed]:
    """The part of `schedule` that belongs to a stage from `start` on; `before`: the last piece of the one before it."""
    assert stage.lr is not None, "checked when the study was resolved"
    place = ("stages", stage.name, "lr")
    return _pieces(stage.lr, start, start + stage.tokens, before, treatment, stage.optimizer.lr, place)


def _pieces(
    lr: LearningRate, start: int, end: int, before: Piece | None, treatment: Treatment, peak: float, place: Place
) -> list[Timed]:
    if before is not None and _goes_on(lr, before):
        return [(start, end, before)]
    ended = None if before is None else end_rate(before, start)
    begin = _rate_of(lr.start, ended, treatment, peak, (*place, "from"))
    middle = start + lr.warmup
    pieces: list[Timed] = []
    if lr.warmup:
        pieces.append((start, middle, _warmup(lr, start, middle, begin, ended, treatment, peak, place)))
    if middle == end:
        return pieces
    if lr.shape == "multi-step":
        return pieces + _steps(lr, start, middle, end, begin)
    if lr.shape == "constant" or begin == lr.end:  # a decay that goes nowhere is the constant that it is
        body: dict[str, Any] = {"shape": "constant", "value": begin}
    elif lr.shape in OPEN_SHAPES:
        exponent = {} if lr.exponent is None else {"exponent": lr.exponent}
        seen = treatment.base.tokens_seen or 0
        body = {"shape": lr.shape, "from": begin, **exponent, "start": middle, "seen": seen}
    else:
        body = {"shape": lr.shape, "from": begin, "to": lr.end, "start": middle, "end": end}
    return [*pieces, (middle, end, body)]


def _goes_on(lr: LearningRate, before: Piece) -> bool:
    """Whether a stage is nothing but more of the open-ended decay before it."""
    same = lr.shape in OPEN_SHAPES and lr.shape == before["shape"] and lr.exponent == before.get("exponent")
    return same and lr.start is None and not lr.warmup


def _warmup(
    lr: LearningRate,
    start: int,
    end: int,
    peak_of_it: float,
    ended: float | None,
    treatment: Treatment,
    peak: float,
    place: Place,
) -> Piece:
    begin = 0.0
    if lr.warmup_from is not None:
        begin = _rate_of(lr.warmup_from, ended, treatment, peak, (*place, "warmup_from"))
    if begin >= peak_of_it:
        message = f"{begin:g} is not below {peak_of_it:g}, to which the warm-up leads; expected a lower rate, or none"
        raise Mistake((*place, "warmup_from"), message)
    return {"shape": "linear", "from": begin, "to": peak_of_it, "start": start, "end": end, "at": "end"}


def _steps(lr: LearningRate, start: int, middle: int, end: int, begin: float) -> list[Timed]:
    """Constants from the end of the warm-up on; milestones count from the start of the schedule."""
    cuts = [middle, *(start + milestone for milestone in lr.milestones), end]
    values = [begin, *(float(exact(begin) * exact(factor)) for factor in lr.factors)]
    spans = zip(cuts, cuts[1:], values, strict=False)
    return [(first, last, {"shape": "constant", "value": value}) for first, last, value in spans]


def _rate_of(declared: float | str | None, ended: float | None, treatment: Treatment, peak: float, at: Place) -> float:
    """A declared rate as a number; None and `previous`: where the stage before ended, for the first stage its peak."""
    if declared == "base":
        if treatment.base.lr is None:
            raise Mistake(at, "is `base`, but `base.lr` is missing; expected base.lr or another rate")
        return treatment.base.lr
    if isinstance(declared, float):
        return declared
    return peak if ended is None else ended
