"""States that are made of other states' weights, without training: segments of kind `merge`.

Such a segment begins and ends at one token, hangs on a trained segment and is named by its recipe,
{"method": ..., "of": [states]}, which is all that its job needs. It is no part of a run's path; a point leads to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.plan.canonical import digest
from harness.plan.fingerprint import LENGTH
from harness.plan.tree import Segment

if TYPE_CHECKING:
    from harness.plan.plan import PlanRun

EMA = "ema"  # the label of the point at which the moving average of the weights is evaluated


def merge_id(recipe: Mapping[str, Any]) -> str:
    """The name of the state that a recipe makes."""
    return digest({"recipe": dict(recipe)})[:LENGTH]


def add_averages(runs: Sequence[PlanRun], segments: dict[str, Segment], costs_known: bool) -> dict[str, str]:
    """Enter a merge segment for the moving average at the end of each run. Returns its id by the run's name.

    Runs that share their end share its average.
    """
    found: dict[str, str] = {}
    for index, run in enumerate(runs):
        last = segments[run.path[-1]]
        recipe = {"method": EMA, "of": [last.id]}
        name = found[run.name] = merge_id(recipe)
        if name not in segments:
            at, stage = last.tokens_to, run.pieces[-1].stage
            merge = Segment(name, last.id, at, at, index, stage, kind="merge", recipe=recipe)
            merge.flops = 0 if costs_known else None
            segments[name] = merge
    return found
