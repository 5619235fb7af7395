"""What a metric is called, which direction is better, and how its numbers are printed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.study.measures import ACCURACY, PROBABILITY, unfiltered

Family = Literal["bpb", "continuous", "accuracy", "average", "other"]

# Order of the tables: continuous measures lead because accuracy saturates and is coarse at small scale.
FAMILY_ORDER: tuple[Family, ...] = ("bpb", "continuous", "average", "accuracy", "other")
FAMILY_TITLES = {
    "bpb": "Bits per byte",
    "continuous": "Probability of the correct choice",
    "average": "Suite averages",
    "accuracy": "Accuracy",
    "other": "Other measures",
}
LOWER_IS_BETTER = ("bits_per_byte", "loss", "nll", "nats_per_token", "perplexity", "brier")


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of the results.

    name: as the study and the report call it: `bpb.<source>`, `<suite>.<task>.<measure>` or `<suite>.average`.
    measure: its name inside an evaluation's results; None for an average.
    parts: the metrics that an average averages, empty otherwise.
    """

    name: str
    family: Family
    higher_is_better: bool
    measure: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def percent(self) -> bool:
        """Whether it is a share in [0, 1] that is printed in percent."""
        return self.family in ("accuracy", "continuous", "average")

    @property
    def unit(self) -> str:
        if self.percent:
            return "%"
        if self.family == "bpb":
            return "bits/byte"
        return "nats/token" if (self.measure or "").startswith("nats_per_token") else ""

    @property
    def difference_unit(self) -> str:
        return "pp" if self.percent else self.unit

    @property
    def scale(self) -> float:
        return 100.0 if self.percent else 1.0

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher_is_better else "lower is better"


def suite_name(suite: str | None) -> str | None:
    """`quickstart` of `quickstart@1`."""
    return suite.split("@", 1)[0] if suite else None


def metric_name(suite: str | None, task: str, measure: str, held_out: bool) -> str:
    """The study's name of a measure: `bpb.<source>` for held-out text, else `<suite>.<task>.<measure>`."""
    if held_out:
        source = task.removeprefix("held_out.")
        return f"bpb.{source}" if measure == "bits_per_byte" else f"bpb.{source}.{measure}"
    return ".".join(part for part in (suite_name(suite), task, measure) if part)


def family_of(measure: str) -> Family:
    measure = unfiltered(measure)
    if measure == "bits_per_byte":
        return "bpb"
    if measure in ACCURACY:
        return "accuracy"
    if measure in PROBABILITY:
        return "continuous"
    return "other"


def guess_direction(name: str) -> bool:
    """Whether higher is better, for a metric that no evaluation has reported yet."""
    measure = name.rpartition(".")[2]  # `glossary.acc` holds no loss
    return not (name.startswith("bpb.") or any(word in measure for word in LOWER_IS_BETTER))


def in_order(metrics: Iterable[Metric], primary: Iterable[str]) -> list[Metric]:
    """Primary metrics first, as declared; then by family; within a family as found."""
    declared = {name: index for index, name in enumerate(primary)}
    return sorted(metrics, key=lambda m: (declared.get(m.name, len(declared)), FAMILY_ORDER.index(m.family)))


def decimals_for(error: float | None, metric: Metric) -> int:
    """Decimals that show about two digits of the error: 1 for percent (2 below 0.1 pp), 3–4 otherwise."""
    low, high = (1, 2) if metric.percent else (3, 4)
    if error is None or not math.isfinite(error) or error <= 0.0:
        return low
    digits = (0 if metric.percent else 1) - math.floor(math.log10(error * metric.scale))
    return min(high, max(low, digits))


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number as printed, with a true minus sign; what rounds to 0 has no sign."""
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return (text if float(text) != 0.0 else text.lstrip("+-")).replace("-", "−")


def bound(value: float, decimals: int) -> str:
    """A bound of an interval: always signed, for one that just excludes 0 must not read as if it held it."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def margin_text(metric: Metric, margin: float) -> str:
    """A margin as a study writes it: `0.5 pp`, `0.01 bits/byte`."""
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    return f"{margin * metric.scale:g}{unit}"
