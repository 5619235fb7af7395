"""What the fits say beyond differences to the baseline: who loses less than a margin, and who may be the best arm.

Non-inferiority ("general ability is not harmed") needs a margin and a confidence bound, not a p above 0.05. The bound
is one-sided at 2.5 % (ICH E9, 3.3.2: the bound of a two-sided 95 % interval) and holds for all planned arms
(one-sided Dunnett) and all declared margins (Bonferroni) together. It holds for the trained arms; a merged one is not
tested, so its margin is not judged here (`ablate compare` gives its bound, for that comparison alone).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis import statistics
from analysis.effects import ALPHA, Comparisons, Difference
from analysis.metrics import Metric

ONE_SIDED = ALPHA / 2.0
NOT_TESTED = "merged, no test"
Kept = Literal["not worse", "worse", "not shown", "not estimated"]


@dataclass(frozen=True, slots=True)
class Retained:
    """One arm against the baseline and a margin, on one metric.

    margin: what may be lost, positive, in the metric's own unit. bound: the worst difference (arm − baseline) that the
    data leave open; None when the run-level error is not estimated. critical: its multiple of the standard error.
    verdict: `not worse` when even the bound loses less than the margin; `worse` when the other bound loses more;
    `not shown` between.
    """

    difference: Difference
    margin: float
    bound: float | None
    critical: float | None
    verdict: Kept

    @property
    def metric(self) -> Metric:
        return self.difference.metric

    @property
    def arm(self) -> str:
        return self.difference.arm


def retained(comparisons: Comparisons) -> Mapping[tuple[str, str], Retained]:
    """(arm, metric) → the verdict on its margin, for every metric of `compare.not_worse`, in declared order."""
    frame = comparisons.frame
    return {
        (arm.name, name): _simultaneous(comparisons, comparisons.to_baseline[arm.name, name], margin)
        for name, margin in frame.compare.not_worse.items()
        for arm in frame.compared
        if arm.name != frame.compare.baseline
    }


def _simultaneous(comparisons: Comparisons, d: Difference, margin: float) -> Retained:
    """Against the baseline, with a bound that holds for all trained arms and margins."""
    if d.merged:
        return Retained(replace(d, reason=d.reason or NOT_TESTED), margin, None, None, "not estimated")
    if d.run_se is None or d.df is None:
        return against_margin(d, margin, None)
    level = ONE_SIDED / len(comparisons.frame.compare.not_worse)
    rho = comparisons.correlation(d.metric.name, d.reference)
    critical = statistics.dunnett_critical_one_sided(max(1, comparisons.family[0]), d.df, level, rho)
    return against_margin(d, margin, critical)


def against_margin(d: Difference, margin: float, critical: float | None) -> Retained:
    """The verdict on one difference; critical None: that of this comparison alone."""
    if d.estimate is None or d.run_se is None or d.df is None:
        return Retained(d, margin, None, None, "not estimated")
    if critical is None:
        critical = statistics.t_critical(d.df, 2.0 * ONE_SIDED)
    sign = 1.0 if d.metric.higher_is_better else -1.0
    within = statistics.within_margin(sign * d.estimate, d.run_se, critical, margin)
    verdict: Kept = "not shown" if within is None else "not worse" if within else "worse"
    return Retained(d, margin, d.estimate - sign * critical * d.run_se, critical, verdict)


def best_arms(comparisons: Comparisons, metric: Metric) -> frozenset[str] | None:
    """The compared arms that cannot be told from the best one, holding for all primary metrics together at 95 %.

    None when the run-level error is not estimated: then nobody can be told from anybody. Arms that no seed connects
    with the others are left out.
    """
    frame, fit = comparisons.frame, comparisons.fits[metric.name]
    if fit is None or not fit.estimable_error:
        return None
    arms = [arm for arm in fit.arms if fit.estimable(arm, fit.arms[0])]
    if len(arms) < 2:
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    gains = [sign * fit.contrast(arm, arms[0]) for arm in arms]
    sd = math.sqrt(fit.residual_variance)
    errors = np.array([[sd * math.sqrt(max(0.0, fit.unit_variance(a, b))) for b in arms] for a in arms])
    most = max(arms, key=lambda arm: frame.count(arm)["done"])  # as a reference it leaves the smallest correlation
    rho = comparisons.correlation(metric.name, most)
    level = ALPHA / max(1, len(frame.compare.primary))
    critical = statistics.dunnett_critical_one_sided(max(1, comparisons.family[0]), fit.df, level, rho)
    found = statistics.among_best(gains, errors, critical)
    return frozenset(arm for arm, among in zip(arms, found, strict=True) if among)
