"""Differences beside what they cost: `compare.report_also`, for arms that are equal in tokens but not in compute.

A difference is shown as it is, and divided by the arm's cost in units of the baseline's: what each baseline's worth of
compute (or tokens) bought. The division is linear; it is no estimate of the score at equal cost, for which a study has
an arm of its own (`tokens: {flops_of: ...}`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis import audit
from analysis.effects import Comparisons
from analysis.statistics import Interval

EQUAL = 0.005  # of the baseline's cost: nearer than this is called equal


@dataclass(frozen=True, slots=True)
class PerCost:
    """A difference divided by the cost ratio, with its interval scaled alike."""

    estimate: float
    interval: Interval | None


@dataclass(frozen=True)
class Costed:
    """One arm. ratio: its cost over the baseline's, None when one is unknown; differences: by primary metric."""

    arm: str
    tokens: int
    flops: int | None
    ratio: float | None
    differences: Mapping[str, PerCost]

    @property
    def equal(self) -> bool:
        return self.ratio is not None and abs(self.ratio - 1.0) <= EQUAL


def costed(comparisons: Comparisons) -> list[Costed]:
    """One per compared arm, in order; empty where the study does not ask for it."""
    frame = comparisons.frame
    if frame.compare.report_also is None:
        return []
    costs = audit.costs(frame)
    base = _quantity(costs[frame.compare.baseline], frame.compare.report_also)
    found = []
    for arm in frame.compared:
        cost = costs[arm.name]
        own = _quantity(cost, frame.compare.report_also)
        ratio = own / base if own and base else None
        found.append(Costed(arm.name, cost.tokens, cost.flops, ratio, _differences(comparisons, arm.name, ratio)))
    return found


def _quantity(cost: audit.Cost, what: str) -> int | None:
    return cost.flops if what == "flops" else cost.tokens


def _differences(comparisons: Comparisons, arm: str, ratio: float | None) -> dict[str, PerCost]:
    found = {}
    for metric in comparisons.frame.primary if ratio else ():
        d = comparisons.to_baseline.get((arm, metric.name))
        if d is not None and d.estimate is not None and ratio:
            interval = d.adjusted or d.interval
            scaled = None if interval is None else (interval[0] / ratio, interval[1] / ratio)
            found[metric.name] = PerCost(d.estimate / ratio, scaled)
    return found
