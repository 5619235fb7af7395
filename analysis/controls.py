"""Whether a study's controls hold: an A/A arm that must not differ, a number that must come out.

*A/A.* An arm is trained again under another name, with seeds of its own. Nothing is different, so a difference beyond
what seeds explain means that the study cannot tell treatments apart: something that no arm declares moves its results.
The seeds are others, so nothing is paired; the science is the same, so both arms have one variance, and the pooled
two-sample interval is exact for normal residuals (Student 1908; Welch's, which drops the equal variances, has fewer
degrees of freedom and is less able to see a difference that is there):

    d ± t(1 − α / 2k; n + m − 2) · s_p · √(1/n + 1/m),   s_p² = (SS_x + SS_y) / (n + m − 2)

over the n runs of the arm and the m of its double, for each of the k primary metrics; α = 0.05 is divided by k
(Bonferroni), so a sound study fails its A/A control in at most 5 % of all cases, whatever the metrics have to do with
each other. The control passes when every interval holds 0. With one run on both sides no variance can be estimated:
the control says nothing, cannot fail, and lets the other arms go with a note. It has power against large faults alone:
with 3 seeds on both sides and one metric it sees a difference of 3.1 standard deviations of a run in 8 of 10 cases.

*Reproduction.* |mean over the arm's runs − value| ≤ tolerance. The mean is over the runs that came to the point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.frame import END, Frame
from analysis.metrics import Metric, decimals_for, number
from analysis.statistics import ROUNDING, t_critical

ALPHA = 0.05
CODE = "control-failed"  # what `compare.allow` takes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a control has shown. passed: None while it is not known, or where nothing can be estimated.

    released: whether this control lets the other arms be trained: it passed, can say nothing, or its failure is
    allowed by name.
    """

    name: str
    passed: bool | None
    sentence: str
    released: bool


@dataclass(frozen=True, slots=True)
class Doubled:
    """The unpaired difference of one metric, double − arm, with its interval; `df` 0 when it is not estimated."""

    difference: float
    half_width: float
    df: int

    @property
    def holds_zero(self) -> bool:
        return abs(self.difference) <= self.half_width


def pooled_difference(arm: Sequence[float], double: Sequence[float], alpha: float) -> Doubled:
    """mean(double) − mean(arm) with the pooled two-sample t interval of level 1 − alpha. Raises ValueError if empty.

    Values that differ by rounding alone have a variance of 0 and an interval as wide as the rounding.
    """
    x, y = np.asarray(arm, dtype=np.float64), np.asarray(double, dtype=np.float64)
    if not len(x) or not len(y):
        raise ValueError("one of the two arms has no value")
    difference = float(y.mean() - x.mean())
    df = len(x) + len(y) - 2
    if df == 0:
        return Doubled(difference, math.nan, 0)
    squares = float(((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum())
    error = math.sqrt(squares / df * (1 / len(x) + 1 / len(y)))
    rounding = ROUNDING * max(abs(float(x.mean())), abs(float(y.mean())))
    return Doubled(difference, max(t_critical(df, alpha) * error, rounding), df)


def verdicts(frame: Frame) -> list[Verdict]:
    """What each of the study's controls has shown so far, in the order written."""
    found = []
    for control in frame.plan.get("controls") or ():
        judged = _same_as(frame, control) if control["kind"] == "same_as" else _reproduction(frame, control)
        if judged.passed is False and CODE in frame.compare.allow.get(judged.name, ()):
            judged = Verdict(judged.name, False, f"{judged.sentence} (allowed by `compare.allow`)", True)
        found.append(judged)
    return found


def _same_as(frame: Frame, control: Mapping[str, Any]) -> Verdict:
    name, arm = str(control["name"]), frame.arm(control["arm"]).name
    waiting = [run.name for one in (arm, name) for run in frame.runs_of(one) if run.status not in ("done", "diverged")]
    if waiting or not frame.runs_of(name):
        return _unknown(name, waiting)
    if not frame.primary:
        return Verdict(name, None, "not estimated: no metric was measured, so there is nothing to compare", True)
    failed: list[str] = []
    shown: list[str] = []
    for metric in frame.primary:
        values = [[value.value for value in frame.at_end(one, metric.name).values()] for one in (arm, name)]
        if not all(values):
            lost = arm if not values[0] else name
            return Verdict(name, False, f"no run of `{lost}` came to a value of {metric.name}", False)
        found = pooled_difference(values[0], values[1], ALPHA / len(frame.primary))
        text = _difference_text(metric, found, len(values[0]), len(values[1]))
        if found.df == 0:
            return Verdict(name, None, f"not estimated with one run on each side ({text}), so it cannot fail", True)
        (shown if found.holds_zero else failed).append(text)
    level = 100 * (1 - ALPHA / len(frame.primary))
    if failed:
        return Verdict(name, False, f"differs from `{arm}`, whose science it has: {'; '.join(failed)}", False)
    return Verdict(name, True, f"does not differ from `{arm}`: {'; '.join(shown)} ({level:.3g} % intervals)", True)


def _reproduction(frame: Frame, control: Mapping[str, Any]) -> Verdict:
    name, arm, metric = str(control["name"]), frame.arm(control["arm"]).name, str(control["metric"])
    at = str(control["at"] or END)
    runs = frame.runs_of(arm)
    values = [value.value for run in runs if (value := frame.values.get((run.name, at, metric))) is not None]
    came = {run.name for run in runs if (run.name, at, metric) in frame.values}
    waiting = [run.name for run in runs if run.name not in came and run.status not in ("done", "diverged")]
    if waiting or not runs:
        return _unknown(name, waiting)
    wanted, tolerance = float(control["value"]), float(control["tolerance"])
    expected = f"expected {wanted:g} ± {tolerance:g}"
    if not values:
        return Verdict(name, False, f"no run of `{arm}` has a value of {metric} at `{at}`; {expected}", False)
    mean = float(np.mean(values))
    distance = abs(mean - wanted)
    passed = distance <= tolerance + ROUNDING * max(abs(mean), abs(wanted))
    runs_text = f"{len(values)} run" + "s" * (len(values) != 1)
    sentence = f"{metric} of `{arm}` at `{at}` is {mean:.6g} (mean of {runs_text}), {expected}"
    return Verdict(name, passed, sentence + ("" if passed else f": off by {distance:.3g}"), passed)


def _unknown(name: str, waiting: Sequence[str]) -> Verdict:
    first = f" `{waiting[0]}`" if waiting else ""
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return Verdict(name, None, f"not known yet: waits for{first or ' its runs'}{more}", False)


def _difference_text(metric: Metric, found: Doubled, runs: int, doubled: int) -> str:
    half = found.half_width
    decimals = decimals_for(half if math.isfinite(half) else None, metric)
    scale = metric.scale
    shown = number(found.difference * scale, decimals, signed=True)
    if math.isfinite(half):
        low, high = (number((found.difference + side * half) * scale, decimals, signed=True) for side in (-1, 1))
        shown += f" [{low}, {high}]"
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    return f"{metric.name} by {shown}{unit}, {doubled} against {runs} runs"
