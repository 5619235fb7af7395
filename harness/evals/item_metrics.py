"""Per-item metrics that we derive ourselves, and the standard errors of everything that is reported.

Pure functions of numbers; nothing here knows lm-eval or torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    value: None when it is not finite. stderr: standard error over items, None where it is not estimated (one item, or
    an aggregation that is neither a mean nor a ratio of sums). n: items behind it. aggregation: `mean` of the items'
    column of the same name, `ratio` of sums over items, or `other` (lm-eval's own, no column).
    """

    value: float | None
    stderr: float | None
    n: int
    higher_is_better: bool
    aggregation: str

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "stderr": self.stderr,
            "n": self.n,
            "higher_is_better": self.higher_is_better,
            "aggregation": self.aggregation,
        }


def correct_probability(loglikelihoods: Sequence[float], correct: Collection[int]) -> float:
    """Probability of the right choice among the choices: sum of exp(ll) over `correct`, divided by that over all.

    loglikelihoods: nats, one per choice, not normalised by length. NaN when `correct` is empty or nothing is finite.
    """
    values = np.asarray(loglikelihoods, dtype=np.float64)
    top = values.max()
    if not correct or not np.isfinite(top):
        return math.nan
    weights = np.exp(values - top)
    return float(weights[sorted(correct)].sum() / weights.sum())


def bits_per_byte(nats: float, size: int) -> float:
    """Negative log-likelihood `nats` over `size` UTF-8 bytes, in bits per byte. NaN for an empty text."""
    return nats / (math.log(2) * size) if size else math.nan


def mean_metric(values: Sequence[float], higher_is_better: bool) -> Metric:
    """Mean over items and its standard error, sample SD (n - 1) over the root of n. NaN items are left out of n."""
    kept = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    n = len(kept)
    if not n or not np.isfinite(kept).all():
        return Metric(None, None, n, higher_is_better, "mean")
    stderr = float(kept.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Metric(float(kept.mean()), stderr, n, higher_is_better, "mean")


def ratio_metric(
    numerators: Sequence[float], denominators: Sequence[float], higher_is_better: bool, scale: float = 1.0
) -> Metric:
    """`scale` times a ratio of sums over items, R = sum a / sum b, with its standard error by the delta method.

    SE(R) = sqrt(n / (n - 1) * sum (a_i - R b_i)^2) / sum b_i: the linearisation of a ratio estimator under sampling of
    items (Cochran, Sampling Techniques, 3rd ed., eq. 6.13 without the finite-population correction).
    """
    a = np.asarray(numerators, dtype=np.float64)
    b = np.asarray(denominators, dtype=np.float64)
    n, total = len(a), float(b.sum())
    if not n or not total:
        return Metric(None, None, n, higher_is_better, "ratio")
    ratio = float(a.sum()) / total
    residuals = a - ratio * b
    stderr = math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total if n > 1 else math.nan
    return Metric(finite(scale * ratio), finite(scale * stderr), n, higher_is_better, "ratio")


def finite(value: float) -> float | None:
    """`value`, None when it is NaN or infinite: results are JSON, which has neither."""
    return float(value) if math.isfinite(value) else None
