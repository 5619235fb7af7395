"""What each arm did against a reference: paired differences with run-level and item-level errors.

Run-level: least squares of run mean = arm + seed over all trained arms, the residual pooled
(`statistics.fit_additive`). Against the baseline a primary metric has an interval adjusted for all arms (Dunnett) and
all primary metrics (Bonferroni); an arm is better or worse when that interval excludes 0. Other metrics, and
differences to the control, carry the plain 95 % interval and no verdict. A merged arm is a mean of runs that the fit
has already, so it is in no fit and no test: its error is that of its own seeds' paired differences. Item-level errors
are computed beside it from the same runs' items, never mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from analysis import statistics
from analysis.frame import END, Frame
from analysis.items import Items
from analysis.metrics import Metric
from analysis.statistics import AdditiveFit, Estimate, Interval, Spread

ALPHA = 0.05
POWER = 0.8
Verdict = Literal["better", "worse", "not distinguishable", "not estimated"]


@dataclass(frozen=True, slots=True)
class Difference:
    """arm − reference on one metric.

    seeds: those that both have. estimate: None when there are none. df, run_se, interval: None when the run-level
    error is not estimated; `reason` then says why. adjusted, mde, verdict: only against the baseline on a primary
    metric (verdict None otherwise); mde is the difference that the adjusted interval would exclude from 0 with
    probability 0.8. item_se: error of the paired difference over items, from the same runs; None without samples.
    merged: one of the two is made of others' weights, and the error is that of these seeds' differences alone.
    """

    metric: Metric
    arm: str
    reference: str
    seeds: tuple[str, ...]
    estimate: float | None
    run_se: float | None = None
    df: int | None = None
    interval: Interval | None = None
    adjusted: Interval | None = None
    critical: float | None = None
    mde: float | None = None
    verdict: Verdict | None = None
    reason: str = ""
    item_se: float | None = None
    items: int = 0
    runs: tuple[str, ...] = ()
    evaluations: tuple[str, ...] = ()
    merged: bool = False


@dataclass(frozen=True)
class Comparisons:
    """All fits and differences of a frame, computed when asked for."""

    frame: Frame
    _correlations: dict[tuple[str, str], float] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def fits(self) -> Mapping[str, AdditiveFit | None]:
        """By metric: the fit over the trained arms' final states that have a value; None when there is none."""
        fits: dict[str, AdditiveFit | None] = {}
        for metric in self.frame.metrics:
            cells = {
                (arm.name, seed): value.value
                for arm in self.frame.tested
                for seed, value in self.frame.at_end(arm.name, metric.name).items()
            }
            fits[metric.name] = statistics.fit_additive(cells) if cells else None
        return fits

    @property
    def family(self) -> tuple[int, int]:
        """How many (arms, primary metrics) the adjusted intervals hold for together: all that were planned
        and are trained."""
        return len(self.frame.tested) - 1, len(self.frame.compare.primary)

    @cached_property
    def to_baseline(self) -> Mapping[tuple[str, str], Difference]:
        """(arm, metric) → its difference to the baseline."""
        return self._all(self.frame.compare.baseline)

    @cached_property
    def to_control(self) -> Mapping[tuple[str, str], Difference]:
        """(arm, metric) → its difference to the control; empty where that is the baseline or there is none."""
        control = self.frame.compare.control
        return {} if control in (None, self.frame.compare.baseline) else self._all(str(control))

    def _all(self, reference: str) -> dict[tuple[str, str], Difference]:
        return {
            (arm.name, metric.name): self.difference(metric, arm.name, reference)
            for arm in self.frame.compared
            for metric in self.frame.metrics
            if arm.name != reference
        }

    def residual_sd(self, metric: str) -> float | None:
        """SD of a run about its arm and its seed, pooled over arms; None when not estimated."""
        fit = self.fits[metric]
        return math.sqrt(fit.residual_variance) if fit is not None and fit.estimable_error else None

    @cached_property
    def straying(self) -> Mapping[str, Mapping[str, Spread]]:
        """By metric: trained arms whose runs stray more than the other arms', at 5 % over all arms (F test,
        Bonferroni).

        For them the pooled error is too small. Of seven equal arms with three seeds one that has three times the SD
        of the others is marked in one study of seven, and where that is the baseline, some arm is in three of ten.
        """
        found = {}
        for metric, fit in self.fits.items():
            spreads = {} if fit is None else {arm: fit.own_spread(arm) for arm in fit.arms}
            found[metric] = {arm: s for arm, s in spreads.items() if s is not None and s.p * len(spreads) < ALPHA}
        return found

    def straying_in(self, d: Difference) -> list[str]:
        """The straying arms that a difference is between."""
        return [arm for arm in self.straying[d.metric.name] if arm in (d.arm, d.reference)]

    def why_no_error(self, metric: str) -> str:
        """Why no run-level error can be given for any two trained arms; empty where it can."""
        fit = self.fits[metric]
        if fit is None:
            return "no result yet"
        if fit.df == 0:
            if len(self.frame.seeds) == 1:
                return "one seed"
            return "one arm" if len(self.frame.tested) == 1 else "no two arms share two seeds yet"
        return "" if fit.estimable_error else "the runs do not vary"

    def missing_runs(self, metric: str) -> bool:
        """Whether an arm that has the metric lacks it for a seed that another arm has."""
        fit = self.fits[metric]
        return fit is not None and fit.n < len(fit.arms) * len(fit.seeds)

    def unvarying(self, metric: str) -> tuple[str, ...]:
        """Trained arms whose seeds all gave the same value where other arms' did not: a floor or a ceiling.

        They add degrees of freedom and no variation, so a pooled error that includes them is too small.
        """
        if self.residual_sd(metric) is None:
            return ()
        values = {arm.name: self.frame.at_end(arm.name, metric) for arm in self.frame.tested}
        still = [
            name
            for name, by_seed in values.items()
            if len(by_seed) > 1 and len({value.value for value in by_seed.values()}) == 1
        ]
        varying = any(len({v.value for v in by_seed.values()}) > 1 for by_seed in values.values())
        return tuple(still) if varying else ()

    def correlation(self, metric: str, reference: str) -> float:
        """The smallest correlation between two arms' differences to `reference`, at most ½; once per reference."""
        fit = self.fits[metric]
        if (metric, reference) not in self._correlations:
            self._correlations[metric, reference] = 0.5 if fit is None else _least_correlation(fit, reference)
        return self._correlations[metric, reference]

    def difference(self, metric: Metric, arm: str, reference: str) -> Difference:
        """The difference of two arms with all that is known about its error."""
        frame, fit = self.frame, self.fits[metric.name]
        merged = any(frame.arm(name).merge is not None for name in (arm, reference))
        confirmatory = reference == frame.compare.baseline and metric in frame.primary and not merged
        ours, theirs = frame.at_end(arm, metric.name), frame.at_end(reference, metric.name)
        seeds = tuple(seed for seed in frame.seeds if seed in ours and seed in theirs)
        runs = tuple(run.name for name in (arm, reference) for run in frame.runs_of(name) if run.seed in seeds)
        folders = [f for values in (ours, theirs) for seed in seeds for f in values[seed].evaluations]
        known = Difference(
            metric,
            arm,
            reference,
            seeds,
            estimate=fit.contrast(arm, reference) if fit is not None and seeds and not merged else None,
            runs=runs,
            evaluations=tuple(dict.fromkeys(folders)),
            verdict="not estimated" if confirmatory else None,
            reason=self._why_not(metric.name, ours, theirs, seeds, arm, reference, merged),
            merged=merged,
        )
        if merged and seeds:
            known = _own_error(known, [ours[seed].value - theirs[seed].value for seed in seeds])
        item = item_difference(frame, metric, arm, reference, seeds)
        if item is not None and _says_something(item):
            known = replace(known, item_se=item.se, items=item.n)
        if merged or known.reason or fit is None or known.estimate is None:
            return known
        return self._with_run_error(known, fit, confirmatory)

    def _why_not(
        self,
        metric: str,
        ours: Mapping[str, object],
        theirs: Mapping[str, object],
        seeds: Sequence[str],
        arm: str,
        reference: str,
        merged: bool,
    ) -> str:
        """Why there is no run-level error, empty when there is one."""
        for name, values in ((arm, ours), (reference, theirs)):
            if not values:
                counts = self.frame.count(name)
                if counts["diverged"] == counts["planned"]:
                    return f"every run of {name} diverged"
                return "no evaluation reports it" if counts["done"] else f"{name} has no result yet"
        if not seeds:
            return f"{arm} and {reference} have no seed in common"
        if merged:
            return "one seed" if len(seeds) == 1 else ""
        return self.why_no_error(metric)

    def _with_run_error(self, known: Difference, fit: AdditiveFit, confirmatory: bool) -> Difference:
        assert known.estimate is not None
        se = math.sqrt(fit.residual_variance * fit.unit_variance(known.arm, known.reference))
        plain = statistics.t_critical(fit.df, ALPHA) * se
        with_error = replace(known, run_se=se, df=fit.df, interval=(known.estimate - plain, known.estimate + plain))
        if not confirmatory:
            return with_error
        arms, metrics = self.family
        rho = self.correlation(known.metric.name, known.reference)
        critical = statistics.dunnett_critical(arms, fit.df, ALPHA / metrics, rho)
        low, high = known.estimate - critical * se, known.estimate + critical * se
        return replace(
            with_error,
            critical=critical,
            adjusted=(low, high),
            mde=statistics.minimal_detectable_effect(se, fit.df, critical, POWER),
            verdict=_verdict(low, high, known.metric.higher_is_better),
        )


def _own_error(known: Difference, by_seed: Sequence[float]) -> Difference:
    """The mean of the seeds' differences with s/√n, n − 1 degrees of freedom and the 95 % interval of Student's t."""
    found = statistics.mean_estimate(by_seed)
    known = replace(known, estimate=found.value)
    if found.n < 2:
        return known
    if not _says_something(found):
        return replace(known, reason="the runs do not vary")
    half = statistics.t_critical(found.n - 1, ALPHA) * found.se
    interval = (found.value - half, found.value + half)
    return replace(known, run_se=found.se, df=found.n - 1, interval=interval)


def _verdict(low: float, high: float, higher_is_better: bool) -> Verdict:
    if low <= 0.0 <= high:
        return "not distinguishable"
    return "better" if (low > 0.0) == higher_is_better else "worse"


def _least_correlation(fit: AdditiveFit, reference: str) -> float:
    """The smallest correlation between two arms' contrasts, at most ½.

    ½ in a complete table. Where runs are missing the critical value for the smallest one is the larger one, so the
    intervals hold at least what they promise.
    """
    if fit.n == len(fit.arms) * len(fit.seeds):
        return 0.5  # a complete table
    others = [arm for arm in fit.arms if arm != reference and fit.estimable(arm, reference)]
    return round(max(0.0, min(0.5, fit.least_correlation(others, reference))), 9)


def item_difference(frame: Frame, metric: Metric, arm: str, reference: str, seeds: Sequence[str]) -> Estimate | None:
    """The difference paired over items: per item the mean over seeds, then its error over items.

    For bits per byte the items are documents and the error is the delta method's for a ratio. For a suite's average
    the tasks are fixed. None when samples are missing or the two did not see the same items.
    """
    if metric.parts:
        parts = [item_difference(frame, frame.by_name[part], arm, reference, seeds) for part in metric.parts]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            return None
        value = sum(part.value for part in there) / len(there)
        return Estimate(value, statistics.macro_se([p.se for p in there]), sum(p.n for p in there))
    pairs = [(_end_items(frame, metric, arm, s), _end_items(frame, metric, reference, s)) for s in seeds]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not whole or len(whole) < len(pairs):
        return None
    first = whole[0][0]
    if any(side.identity != first.identity for pair in whole for side in pair):
        return None
    difference = np.mean([a.numerator - b.numerator for a, b in whole], axis=0)
    if first.ratio:
        return statistics.ratio_estimate(difference, first.denominator)
    return statistics.mean_estimate(difference)


def item_error(frame: Frame, metric: Metric, runs: Sequence[tuple[str, str]]) -> float | None:
    """Item-level error of a mean over `runs` (run, point label): per item the mean over runs, then over items."""
    if metric.parts:
        errors = [item_error(frame, frame.by_name[part], runs) for part in metric.parts]
        there = [error for error in errors if error is not None]
        return statistics.macro_se(there) if len(there) == len(errors) else None
    items = [frame.items(run, point, metric) for run, point in runs]
    whole = [item for item in items if item is not None]
    if not whole or len(whole) < len(items) or any(i.identity != whole[0].identity for i in whole):
        return None
    mean = np.mean([item.numerator for item in whole], axis=0)
    estimate = (
        statistics.ratio_estimate(mean, whole[0].denominator) if whole[0].ratio else statistics.mean_estimate(mean)
    )
    return estimate.se if _says_something(estimate) else None


def _says_something(estimate: Estimate) -> bool:
    """Whether an item-level error is one: items that are all alike have shown no variation, not none to come."""
    return math.isfinite(estimate.se) and estimate.se > statistics.ROUNDING * max(1.0, abs(estimate.value))


def _end_items(frame: Frame, metric: Metric, arm: str, seed: str) -> Items | None:
    run = frame.run_of(arm, seed)
    return None if run is None else frame.items(run.name, END, metric)
