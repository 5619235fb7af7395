"""What the results say, as data (`claims.json`) and in one sentence per primary metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from analysis.effects import ALPHA, POWER, Comparisons, Difference
from analysis.frame import Frame
from analysis.margins import ONE_SIDED, Kept, Retained, retained
from analysis.metrics import Metric, decimals_for, margin_text, number
from analysis.statistics import Interval
from analysis.tables import significant

SCHEMA = 1
MOST_NAMED = 8  # arms that a sentence names; the tables have all of them
METHOD = (
    "difference of run means, least squares of arm + seed; residual pooled over arms; adjusted: Dunnett over arms, "
    "Bonferroni over primary metrics"
)


def claims(frame: Frame, comparisons: Comparisons) -> dict[str, Any]:
    """`claims.json`: one claim per primary metric and arm, against the baseline; of a merged arm without a verdict."""
    arms, metrics = comparisons.family
    return {
        "schema": SCHEMA,
        "study": frame.study,
        "question": frame.plan.get("question"),
        "runs": {
            "planned": len(frame.runs),
            "done": sum(run.status == "done" for run in frame.runs),
            "diverged": sum(run.status == "diverged" for run in frame.runs),
        },
        "family": {"arms": arms, "metrics": metrics, "alpha": ALPHA, "method": METHOD},
        "claims": [
            _claim(frame, comparisons, comparisons.to_baseline[arm.name, metric.name])
            for metric in frame.primary
            for arm in frame.compared
            if arm.name != frame.compare.baseline
        ],
        "not_worse": [_kept(kept) for kept in retained(comparisons).values()],
    }


def _kept(kept: Retained) -> dict[str, Any]:
    """A margin's verdict; `bound` is one-sided, simultaneous over arms and margins, in the metric's own unit."""
    d = kept.difference
    return {
        "metric": d.metric.name,
        "higher_is_better": d.metric.higher_is_better,
        "unit": "share" if d.metric.percent else d.metric.unit,
        "arm": d.arm,
        "baseline": d.reference,
        "margin": kept.margin,
        "difference": significant(d.estimate),
        "bound": significant(kept.bound),
        "alpha": ONE_SIDED,
        "verdict": kept.verdict,
        "reason": d.reason or None,
        "seeds": list(d.seeds),
        "runs": list(d.runs),
        "evaluations": list(d.evaluations),
    }


def margin_answers(frame: Frame, comparisons: Comparisons) -> list[tuple[Metric, list[str]]]:
    """Per metric with a margin, in clauses: who is shown to lose less than it, who more, and who neither."""
    found = retained(comparisons)
    return [
        (
            frame.by_name[name],
            _margin_clauses(frame.by_name[name], [k for k in found.values() if k.metric.name == name]),
        )
        for name in frame.compare.not_worse
    ]


def _margin_clauses(metric: Metric, found: Sequence[Retained]) -> list[str]:
    by = {verdict: [f"`{k.arm}`" for k in found if k.verdict == verdict] for verdict in get_args(Kept)}
    margin = margin_text(metric, found[0].margin) if found else ""
    openings = {
        "not worse": f"not worse by more than {margin}: ",
        "worse": f"worse by more than {margin}: ",
        "not shown": f"not shown to be within {margin}: ",
        "not estimated": "not estimated: ",
    }
    clauses = [opening + _listed(by[verdict]) for verdict, opening in openings.items() if by[verdict]]
    return _sentence(clauses or ["there is no arm to compare"])


def _claim(frame: Frame, comparisons: Comparisons, d: Difference) -> dict[str, Any]:
    counts = frame.count(d.arm)
    measured = d.run_se is not None
    where = "paired differences of its own seeds" if d.merged else "residual of arm + seed, pooled over arms"
    pooled = measured and not d.merged
    return {
        "metric": d.metric.name,
        "higher_is_better": d.metric.higher_is_better,
        "unit": "share" if d.metric.percent else d.metric.unit,
        "arm": d.arm,
        "aliases": list(frame.arm(d.arm).aliases),
        "control": d.arm == frame.compare.control,
        **({"merge": frame.arm(d.arm).merge, "tested": False} if d.merged else {}),
        "baseline": d.reference,
        "seeds": list(d.seeds),
        "n_seeds": len(d.seeds),
        "planned": counts["planned"],
        "done": counts["done"],
        "diverged": counts["diverged"],
        "difference": significant(d.estimate),
        "ci95": _interval(d.interval),
        "adjusted_ci": _interval(d.adjusted),
        "verdict": d.verdict,
        "reason": d.reason or None,
        "mde": significant(d.mde),
        "power": POWER,
        "variance": {
            "measured": measured,
            "where": where if measured else None,
            "df": d.df,
            "residual_sd": significant(comparisons.residual_sd(d.metric.name)) if pooled else None,
            "straying": comparisons.straying_in(d),
        },
        "item_se": significant(d.item_se),
        "items": d.items or None,
        "runs": list(d.runs),
        "evaluations": list(d.evaluations),
    }


def _interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [significant(interval[0]), significant(interval[1])]


def metric_decimals(comparisons: Comparisons, metric: Metric) -> int:
    """Decimals in which a metric is printed everywhere: two digits of the typical error of a difference."""
    found = [d for (_, name), d in comparisons.to_baseline.items() if name == metric.name]
    errors = [d.run_se for d in found if d.run_se and not d.merged]
    errors = errors or [d.run_se for d in found if d.run_se] or [d.item_se for d in found if d.item_se]
    return decimals_for(min(errors, default=None), metric)


def answers(frame: Frame, comparisons: Comparisons) -> list[tuple[Metric, list[str]]]:
    """A sentence per primary metric, in clauses: which differences are real, by how much, and what was not seen."""
    return [(metric, _clauses(frame, comparisons, metric)) for metric in frame.primary]


def _clauses(frame: Frame, comparisons: Comparisons, metric: Metric) -> list[str]:
    baseline = frame.compare.baseline
    found = [comparisons.to_baseline[arm.name, metric.name] for arm in frame.compared if arm.name != baseline]
    digits = metric_decimals(comparisons, metric)
    clauses = []
    for verdict in ("better", "worse"):
        there = sorted((d for d in found if d.verdict == verdict), key=lambda d: -abs(d.estimate or 0.0))
        if there:
            clauses.append(f"{verdict} than `{baseline}`: " + _listed(_real(d, metric, digits) for d in there))
    unseen = [d for d in found if d.verdict == "not distinguishable"]
    if unseen:
        limit = number(max(d.mde or 0.0 for d in unseen) * metric.scale, digits)
        names = _listed(f"`{d.arm}`" for d in unseen)
        unit = _spaced(metric.difference_unit)
        clauses.append(
            f"not distinguishable from `{baseline}`: {names} (a true difference of {limit}{unit} would be seen four "
            "times in five)"
        )
    by_reason: dict[str, list[str]] = {}
    for d in found:
        if d.verdict == "not estimated":
            by_reason.setdefault(d.reason, []).append(f"`{d.arm}`")
    clauses += [f"not estimated ({reason}): {_listed(names)}" for reason, names in by_reason.items()]
    clauses += straying_clauses(comparisons, metric)
    merged = [f"`{d.arm}`" for d in found if d.merged]
    clauses += [f"no test (merged of these runs): {_listed(merged)}"] if merged else []
    return _sentence(clauses or ["there is no arm to compare"])


def straying_clauses(comparisons: Comparisons, metric: Metric) -> list[str]:
    """One for each arm that varies more than the pooled error says, with what that makes of the intervals."""
    digits, unit = metric_decimals(comparisons, metric), _spaced(metric.difference_unit)
    baseline = comparisons.frame.compare.baseline
    return [
        f"`{arm}` varies more over seeds than the other arms (SD {number(spread.own * metric.scale, digits)} against "
        f"{number(spread.others * metric.scale, digits)}{unit}), so {_too_short(arm == baseline)}"
        for arm, spread in comparisons.straying[metric.name].items()
    ]


def _too_short(every: bool) -> str:
    return "all intervals here are too short" if every else "its interval is too short, and the others' are too long"


def _sentence(clauses: list[str]) -> list[str]:
    clauses[0] = clauses[0][0].upper() + clauses[0][1:]
    return [clause + ";" for clause in clauses[:-1]] + [clauses[-1] + "."]


def _real(d: Difference, metric: Metric, digits: int) -> str:
    assert d.estimate is not None and d.adjusted is not None
    low, high = sorted(abs(bound) * metric.scale for bound in d.adjusted)
    by = number(abs(d.estimate) * metric.scale, digits)
    unit = _spaced(metric.difference_unit)
    # The end nearer to 0 is shown as far as it differs from 0: the interval excludes 0 and must read like it.
    least = next((text for more in range(12) if float(text := number(low, digits + more))), number(low, digits))
    return f"`{d.arm}` by {by}{unit} ({least} to {number(high, digits)})"


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""


def _listed(parts: Iterable[str]) -> str:
    """`a, b and c`; the first of very many, and how many more."""
    items: Sequence[str] = list(parts)
    if len(items) > MOST_NAMED + 1:
        items = [*items[:MOST_NAMED], f"{len(items) - MOST_NAMED} more"]
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
