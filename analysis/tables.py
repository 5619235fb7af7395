"""The rows of every table: base, branch points, baseline, control and arms, each with a cell per metric.

Reference rows (the base, outside models, branch points, averaged weights, one model merged over all seeds) are models
beside the arms' ends; they carry values and no tests.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.effects import Comparisons, Difference, item_error
from analysis.frame import BASE, EMA, END, Frame, Run, Value
from analysis.margins import retained
from analysis.metrics import Metric
from analysis.outside import OUTSIDE

RowKind = Literal["base", "outside", "branch", "ema", "merge", "baseline", "control", "arm"]
ORDER: tuple[RowKind, ...] = ("base", "outside", "branch", "ema", "merge", "baseline", "control", "arm")


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one row. mean: over the values that there are, None when there is none.

    run_se: the pooled residual SD over √n: what a run varies beyond what its seed does to every arm; None for a merged
    arm, which is not in that residual. item_se: over items, per item averaged over the runs. beyond: items were longer
    than the model was trained for.
    """

    values: tuple[tuple[str, Value], ...]
    mean: float | None
    run_se: float | None
    item_se: float | None
    difference: Difference | None
    to_control: Difference | None
    beyond: bool

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the tables. `counts`: runs by status, with `planned`; for a reference row, states."""

    kind: RowKind
    label: str
    point: str
    aliases: tuple[str, ...]
    note: str
    counts: Counter[str]
    cells: Mapping[str, Cell]

    @property
    def reference(self) -> bool:
        return self.kind in ("base", "outside", "branch", "ema", "merge")

    @property
    def complete(self) -> bool:
        return self.counts["done"] == self.counts["planned"]


def build_rows(frame: Frame, comparisons: Comparisons) -> list[Row]:
    """Every row in the order of the tables."""
    rows = [*_reference_rows(frame), *_pooled_rows(frame), *_outside_rows(frame)]
    for arm in frame.compared:
        kind: RowKind = "arm"
        if arm.name == frame.compare.baseline:
            kind = "baseline"
        elif arm.name == frame.compare.control:
            kind = "control"
        cells = {m.name: _arm_cell(frame, comparisons, arm.name, m) for m in frame.metrics}
        rows.append(Row(kind, arm.name, END, arm.aliases, "", frame.count(arm.name), cells))
    return sorted(rows, key=lambda row: ORDER.index(row.kind))


def counts_text(counts: Mapping[str, int]) -> str:
    """`3 of 3`, or `2 of 3, 1 diverged`: how many runs are done, and what became of the others."""
    text = f"{counts.get('done', 0)} of {counts['planned']}"
    for status in ("diverged", "failed", "unevaluated", "unfinished"):
        if counts.get(status):
            text += f", {counts[status]} {status}"
    return text


def _arm_cell(frame: Frame, comparisons: Comparisons, arm: str, metric: Metric) -> Cell:
    by_seed = frame.at_end(arm, metric.name)
    runs = [run for run in frame.runs_of(arm) if run.seed in by_seed]
    sd = comparisons.residual_sd(metric.name) if frame.arm(arm).merge is None else None
    return Cell(
        values=tuple((run.name, by_seed[run.seed]) for run in runs),
        mean=_mean([by_seed[run.seed].value for run in runs]),
        run_se=sd / math.sqrt(len(runs)) if sd is not None and runs else None,
        item_se=item_error(frame, metric, [(run.name, END) for run in runs]),
        difference=comparisons.to_baseline.get((arm, metric.name)),
        to_control=comparisons.to_control.get((arm, metric.name)),
        beyond=any(_beyond(frame, value) for value in by_seed.values()),
    )


def _reference_rows(frame: Frame) -> list[Row]:
    """The base, the ends of stages and the averaged weights at which runs were evaluated.

    Arms that pass through one state share a row.
    """
    stages = {str(segment["stage"]) for segment in frame.segments.values()}
    labels = dict.fromkeys(point.label for run in frame.compared_runs for point in run.points)
    rows = []
    for label in labels:
        if label == END or label not in frame.evaluated_labels or label not in {BASE, EMA, *stages}:
            continue  # states between stages, evaluated every so many tokens, are for curves
        for runs in _sharing(frame, label):
            states = {run.point(label).state: run for run in reversed(runs)}  # type: ignore[union-attr]
            ends = {point.state for run in runs if (point := run.point(END)) is not None}
            if states.keys() <= ends:
                continue  # the end of the last stage is the arm itself
            rows.append(_reference_row(frame, label, runs, list(reversed(states.values()))))
    return rows


def _pooled_rows(frame: Frame) -> list[Row]:
    """A row for each model that is merged over all seeds."""
    rows = []
    for arm in frame.pooled:
        (run,) = frame.runs_of(arm.name)
        point = run.point(END)
        assert point is not None
        note = f"one model of {', '.join(run.made_of)}, merged at {point.tokens:,} tokens"
        counts = frame.count(arm.name)
        rows.append(Row("merge", arm.name, END, arm.aliases, note, counts, _reference_cells(frame, END, [run.name])))
    return rows


def _outside_rows(frame: Frame) -> list[Row]:
    """A row for each outside model; done when it was evaluated on all that the study measures, and its own suites."""
    measured = [task.key for task in frame.tasks if task.measured]
    rows = []
    for model in frame.outside:
        cells = _reference_cells(frame, OUTSIDE, [model.name])
        keys = [*measured, *(str(task["key"]) for task in model.tasks)]
        whole = all(f"evals/{model.weights}/{key}" in frame.beside for key in keys)
        counts = Counter({"planned": 1, "done": int(whole), "unevaluated": int(not whole)})
        rows.append(Row("outside", model.name, OUTSIDE, (), model.note, counts, cells))
    return rows


def _sharing(frame: Frame, label: str) -> list[list[Run]]:
    """Runs grouped into sets of arms that have the same states at this point, seed by seed."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for arm in frame.compared:
        runs = [run for run in frame.runs_of(arm.name) if run.point(label) is not None]
        if runs:
            key = tuple(f"{run.seed}={run.point(label).state}" for run in runs)  # type: ignore[union-attr]
            groups.setdefault(key, []).extend(runs)
    return list(groups.values())


def _reference_row(frame: Frame, label: str, runs: Sequence[Run], distinct: Sequence[Run]) -> Row:
    arms = tuple(dict.fromkeys(run.arm for run in runs))
    point = distinct[0].point(label)
    assert point is not None
    everyone = len(arms) == len(frame.tested)
    shown = "all arms" if everyone else ", ".join(arms[:3]) + (f" and {len(arms) - 3} more" if len(arms) > 3 else "")
    tokens = sorted({p.tokens for run in distinct if (p := run.point(label)) is not None})
    at = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,}–{tokens[-1]:,}"
    note = "before training" if label == BASE else f"at {at} tokens; {shown}"
    name = {BASE: "base", EMA: f"{', '.join(arms)} (EMA)"}.get(label, f"after {label}")
    if label == EMA:
        note = f"averaged weights at {at} tokens"
    cells = _reference_cells(frame, label, [run.name for run in distinct])
    done = max((cell.n for cell in cells.values()), default=0)
    counts = Counter({"planned": len(distinct), "done": done, "unfinished": len(distinct) - done})
    kinds: dict[str, RowKind] = {BASE: "base", EMA: "ema"}
    return Row(kinds.get(label, "branch"), name, label, (), note, counts, cells)


def _reference_cells(frame: Frame, label: str, names: Sequence[str]) -> dict[str, Cell]:
    """Values at one point of runs whose states there differ, or of an outside model."""
    cells = {}
    for metric in frame.metrics:
        values = [(name, frame.values.get((name, label, metric.name))) for name in names]
        there = tuple((name, value) for name, value in values if value is not None)
        cells[metric.name] = Cell(
            values=there,
            mean=_mean([value.value for _, value in there]),
            run_se=None,
            item_se=item_error(frame, metric, [(name, label) for name, _ in there]),
            difference=None,
            to_control=None,
            beyond=any(_beyond(frame, value) for _, value in there),
        )
    return cells


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _beyond(frame: Frame, value: Value) -> bool:
    """Whether an evaluation behind the value had items with positions that the model was never trained at."""
    return any(frame.result(folder).get("beyond_trained_length") for folder in value.evaluations)


# fmt: off
CSV_FIELDS = (
    "kind", "row", "aliases", "point", "metric", "direction", "primary", "unit",
    "planned", "done", "diverged", "failed", "pending", "n", "mean", "run_se", "item_se",
    "reference", "difference", "run_se_of_difference", "ci95_low", "ci95_high", "adjusted_low", "adjusted_high",
    "verdict", "reason", "mde", "residual_sd", "df", "item_se_of_difference", "items",
    "control_difference", "control_ci95_low", "control_ci95_high", "margin", "margin_bound", "margin_verdict",
    "beyond_trained_length", "runs",
    "evaluations",
)
# fmt: on


def table_csv(frame: Frame, comparisons: Comparisons, rows: Sequence[Row]) -> str:
    """Every number, one line per row and metric, in the metric's own unit (shares, not percent)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    margins = retained(comparisons)
    for row in rows:
        for metric in frame.metrics:
            line = _csv_line(frame, comparisons, row, metric)
            kept = None if row.reference else margins.get((row.label, metric.name))
            if kept is not None:
                found = {"margin": kept.margin, "margin_bound": significant(kept.bound), "margin_verdict": kept.verdict}
                line |= found
            writer.writerow(line)
    return text.getvalue()


def _csv_line(frame: Frame, comparisons: Comparisons, row: Row, metric: Metric) -> dict[str, object]:
    cell, counts = row.cells[metric.name], row.counts
    line: dict[str, object] = {
        "kind": row.kind,
        "row": row.label,
        "aliases": " ".join(row.aliases),
        "point": row.point,
        "metric": metric.name,
        "direction": "higher" if metric.higher_is_better else "lower",
        "primary": metric in frame.primary,
        "unit": "share" if metric.percent else metric.unit,
        **{status: counts[status] for status in ("planned", "done", "diverged", "failed")},
        "pending": counts["unevaluated"] + counts["unfinished"],
        "n": cell.n,
        "mean": significant(cell.mean),
        "run_se": significant(cell.run_se),
        "item_se": significant(cell.item_se),
        "beyond_trained_length": cell.beyond,
        "runs": " ".join(name for name, _ in cell.values),
        "evaluations": " ".join(dict.fromkeys(f for _, value in cell.values for f in value.evaluations)),
    }
    if cell.difference is not None:
        line |= _csv_difference(comparisons, cell.difference)
    if cell.to_control is not None:
        low, high = cell.to_control.interval or (None, None)
        line |= {
            "control_difference": significant(cell.to_control.estimate),
            "control_ci95_low": significant(low),
            "control_ci95_high": significant(high),
        }
    return line


def _csv_difference(comparisons: Comparisons, difference: Difference) -> dict[str, object]:
    low, high = difference.interval or (None, None)
    adjusted_low, adjusted_high = difference.adjusted or (None, None)
    return {
        "reference": difference.reference,
        "difference": significant(difference.estimate),
        "run_se_of_difference": significant(difference.run_se),
        "ci95_low": significant(low),
        "ci95_high": significant(high),
        "adjusted_low": significant(adjusted_low),
        "adjusted_high": significant(adjusted_high),
        "verdict": difference.verdict or "",
        "reason": difference.reason,
        "mde": significant(difference.mde),
        "residual_sd": None if difference.merged else significant(comparisons.residual_sd(difference.metric.name)),
        "df": difference.df,
        "item_se_of_difference": significant(difference.item_se),
        "items": difference.items or None,
    }


def significant(value: float | None, digits: int = 6) -> float | None:
    """Rounded to significant digits, so that the last bits of a linear algebra library do not reach a file."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    # A difference of two nearly equal numbers keeps no six true digits below this.
    return 0.0 if abs(rounded) < 1e-12 else rounded
