"""States that are made of other states' weights, without training: segments of kind `merge`.

Such a segment begins and ends at one token, hangs on the states that it is made of and is named by its recipe,
{"method": ..., "of": [states], ...}, which is all that its job needs. The average of an EMA is no part of its run's
path: a point leads to it. A declared merge (`merge:`) is a run of its own, whose path is that one segment.

A mean has the coefficients c_0..c_k of its parts, exact fractions that sum to 1: {"method": "mean", "of": [...],
"coefficients": ["1/3", ...]}. For checkpoints theta_0..theta_k of one path, with the updates Delta_i = theta_i -
theta_(i-1) between them (WSM, 2507.17634, section 3),

    sum_j c_j theta_j = theta_0 + sum_i w_i Delta_i,    w_i = sum_(j>=i) c_j,  i = 1..k,

so the mean is the model that the updates would have led to had each been scaled by w_i, as a decay scales them. The
inverse gives the coefficients of a decay: c_k = w_k, c_j = w_j - w_(j+1), c_0 = 1 - w_1. Here w_i is what the shape of
a schedule leaves of the rate at x = i / (k + 1): 1 - x for linear to 0, whose coefficients are all 1 / (k + 1), the
uniform mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from harness.plan.canonical import digest
from harness.plan.fingerprint import LENGTH
from harness.plan.schedule import remaining
from harness.plan.tree import Segment

if TYPE_CHECKING:
    from harness.plan.records import PlanRun

EMA = "ema"  # the label of the point at which the moving average of the weights is evaluated
MEAN = "mean"
DIGITS = 12  # decimals of a decay weight that is no fraction: the same on every machine


def merge_id(recipe: Mapping[str, Any]) -> str:
    """The name of the state that a recipe makes."""
    return digest({"recipe": dict(recipe)})[:LENGTH]


def decay_weights(shape: str, to: Fraction, count: int) -> list[Fraction]:
    """w_1..w_count: what is left of the rate at x = i / (count + 1) of a decay from 1 to `to`.

    Exact for `linear` and `1-square`; for the others rounded to 12 decimals, so that everybody names the same state.
    """
    return [_left(shape, Fraction(i, count + 1), to) for i in range(1, count + 1)]


def _left(shape: str, x: Fraction, to: Fraction) -> Fraction:
    if shape == "exponential":
        return _decimal(float(to) ** float(x))
    if shape in ("linear", "1-square"):
        left = 1 - x if shape == "linear" else 1 - x * x
    else:
        left = _decimal(remaining(shape, float(x)))
    return left + (1 - left) * to


def _decimal(value: float) -> Fraction:
    return Fraction(round(value * 10**DIGITS), 10**DIGITS)


def coefficients_of(weights: Sequence[Fraction]) -> list[Fraction]:
    """c_0..c_k of the parts, from the weights w_1..w_k of the updates between them."""
    ladder = [Fraction(1), *weights, Fraction(0)]
    return [above - below for above, below in itertools.pairwise(ladder)]


def normalised(weights: Sequence[Fraction] | None, count: int) -> list[Fraction]:
    """Weights of the parts over their sum; equal ones without any."""
    if weights is None:
        return [Fraction(1, count)] * count
    return [weight / sum(weights) for weight in weights]


def mean_recipe(parts: Sequence[str], coefficients: Sequence[Fraction]) -> dict[str, Any]:
    """The recipe of a weighted mean of states."""
    written = [f"{one.numerator}/{one.denominator}" for one in coefficients]
    return {"method": MEAN, "of": list(parts), "coefficients": written}


def add_averages(runs: Sequence[PlanRun], segments: dict[str, Segment], costs_known: bool) -> dict[str, str]:
    """Enter a merge segment for the moving average at the end of each run. Returns its id by the run's name.

    Runs that share their end share its average.
    """
    return {
        run.name: enter(segments, {"method": EMA, "of": [run.path[-1]]}, index, run, run.tokens, costs_known)
        for index, run in enumerate(runs)
    }


def enter(
    segments: dict[str, Segment], recipe: Mapping[str, Any], index: int, run: PlanRun, tokens: int, costs_known: bool
) -> str:
    """Enter the segment of a recipe, unless it is there. index: of `run`, whose pieces lead to its last part.

    Returns its id.
    """
    name = merge_id(recipe)
    if name not in segments:
        merge = Segment(
            name, recipe["of"][-1], tokens, tokens, index, run.pieces[-1].stage, kind="merge", recipe=recipe
        )
        merge.flops = 0 if costs_known else None
        segments[name] = merge
    return name
