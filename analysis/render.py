"""Numbers as the pages show them. HTML and Markdown say the same thing with the same digits."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.claims import metric_decimals
from analysis.effects import Comparisons, Difference
from analysis.metrics import Metric, bound, number
from analysis.tables import Cell, Row, significant

MISSING = "—"
NO_TEST = "no test"
WHISKER_WIDTH, WHISKER_HEIGHT = 92, 18
VERDICT_CLASS = {"better": "better", "worse": "worse", "not distinguishable": "same", "not estimated": "unknown"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One cell, ready to print: plain text but for `whisker`, which is an SVG element or empty.

    sort: what the column sorts by, empty when there is nothing. title: where the number comes from.
    """

    mean: str
    error: str
    run_se: str
    item_se: str
    n: str
    difference: str
    sort_difference: str
    interval: str
    adjusted: str
    difference_se: str
    item_difference_se: str
    verdict: str
    css: str
    mde: str
    reason: str
    control: str
    control_interval: str
    sort: str
    title: str
    beyond: bool
    whisker: str


class Printer:
    """Prints cells of one metric with the same decimals and one scale."""

    def __init__(self, metric: Metric, comparisons: Comparisons, rows: Sequence[Row]) -> None:
        self.metric = metric
        self.decimals = metric_decimals(comparisons, metric)
        shown = [row.cells[metric.name].difference for row in rows]
        bounds = [abs(b) for d in shown if d is not None for b in d.adjusted or d.interval or ()]
        points = [abs(d.estimate) for d in shown if d is not None and d.estimate is not None]
        self._reach = max([*bounds, *points], default=0.0)

    def value(self, value: float | None, signed: bool = False, extra: int = 0) -> str:
        if value is None or not math.isfinite(value):
            return MISSING
        return number(value * self.metric.scale, self.decimals + extra, signed)

    def bound(self, value: float | None) -> str:
        """One end of an interval, signed."""
        return MISSING if value is None else bound(value * self.metric.scale, self.decimals)

    def interval(self, interval: tuple[float, float] | None) -> str:
        if interval is None:
            return MISSING
        low, high = (bound(end * self.metric.scale, self.decimals) for end in interval)
        return f"[{low}, {high}]"

    def cell(self, row: Row) -> Shown:
        """The cell of `row` in this metric's column."""
        cell = row.cells[self.metric.name]
        d = cell.difference
        control = cell.to_control
        partial = cell.n != row.counts["done"] and cell.n > 0
        return Shown(
            mean=self.value(cell.mean),
            error=f"± {self.value(cell.run_se)}" if cell.run_se is not None else "",
            run_se=self.value(cell.run_se, extra=1),
            item_se=self.value(cell.item_se, extra=1),
            n=f"n = {cell.n}" if partial else "",
            difference=self.value(d.estimate if d else None, True),
            sort_difference=_sortable(d.estimate if d else None),
            interval=self.interval(d.interval if d else None),
            adjusted=self.interval(d.adjusted if d else None),
            difference_se=self.value(d.run_se if d else None, extra=1),
            item_difference_se=self.value(d.item_se if d else None, extra=1),
            verdict=_verdict_text(d),
            css=VERDICT_CLASS.get(d.verdict or "", "") if d else "",
            mde=self.value(d.mde if d else None) if d and d.verdict == "not distinguishable" else "",
            reason=d.reason if d else "",
            control=self.value(control.estimate if control else None, True),
            control_interval=self.interval(control.interval) if control and control.interval else "",
            sort=_sortable(cell.mean),
            title=provenance(cell),
            beyond=cell.beyond,
            whisker=self._whisker(d),
        )

    def _whisker(self, d: Difference | None) -> str:
        """The adjusted interval (or the plain one) as a line with a dot, 0 in the middle."""
        if d is None or d.estimate is None or self._reach == 0.0:
            return ""
        middle, y = WHISKER_WIDTH / 2, WHISKER_HEIGHT / 2
        scale = (middle - 5) / self._reach
        css = VERDICT_CLASS.get(d.verdict or "", "same")
        parts = [f'<line class="zero" x1="{middle:g}" y1="0" x2="{middle:g}" y2="{WHISKER_HEIGHT}"/>']
        interval = d.adjusted or d.interval
        if interval is not None:
            low, high = (f"{middle + end * scale:.1f}" for end in interval)
            parts.append(f'<line class="bar" x1="{low}" y1="{y:g}" x2="{high}" y2="{y:g}"/>')
        parts.append(f'<circle cx="{middle + d.estimate * scale:.1f}" cy="{y:g}" r="3"/>')
        size = f'width="{WHISKER_WIDTH}" height="{WHISKER_HEIGHT}"'
        label = html.escape(f"{self.value(d.estimate, True)} {self.interval(interval)}")
        return f'<svg class="whisker {css}" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _sortable(value: float | None) -> str:
    rounded = significant(value, 9)
    return "" if rounded is None else f"{rounded:.9g}"


def _verdict_text(d: Difference | None) -> str:
    """The verdict; `no test` for a merged arm, which has an interval of its own and none of the study's."""
    if d is None:
        return ""
    if d.merged:
        return "not estimated" if d.run_se is None else NO_TEST
    return d.verdict or ""


def provenance(cell: Cell) -> str:
    """For a tooltip: each run with its value and its evaluation folders (shortened; table.csv has them whole)."""
    return "\n".join(
        f"{run}: {value.value:.6g}  {', '.join(shorten(folder) for folder in value.evaluations)}"
        for run, value in cell.values
    )


def shorten(folder: str) -> str:
    """`evals/<weights>/<key>` with 12 digits of each name."""
    return "/".join(part if len(part) <= 16 else part[:12] + "…" for part in folder.split("/"))


def change_lines(changes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(path, value) for each declared change, values as they would be written in one line of YAML."""
    return [(path.removeprefix("stages."), flow(value)) for path, value in changes.items()]


def flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {flow(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tokens_text(tokens: int) -> str:
    """Tokens as people say them, three digits: 2.06M."""
    for size, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if tokens >= 0.9995 * size:  # what rounds to 1000 of one unit is 1 of the next
            return f"{tokens / size:.3g}{suffix}"
    return str(tokens)


def flops_text(flops: int | None) -> str:
    """FLOPs as m × 10ⁿ."""
    if flops is None:
        return MISSING
    if flops == 0:
        return "0"
    power = math.floor(math.log10(flops))
    mantissa = f"{flops / 10**power:.2f}"
    return f"{mantissa} × 10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
