"""The paired comparison of two arms over all metrics: what `ablate compare DIR ARM_A ARM_B` prints.

Differences are A − B. Exploratory by nature: every metric is looked at, so the run-level p is adjusted over all of them
(Holm). Exact tests stand beside it, because with few seeds and few items the normal ones say too much.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from analysis import statistics
from analysis.claims import metric_decimals
from analysis.effects import Comparisons, Difference
from analysis.frame import END, Frame, read_frame
from analysis.margins import ONE_SIDED, against_margin
from analysis.metrics import Metric, bound, margin_text, number
from analysis.tables import counts_text, significant
from harness.study.errors import UserError

SCHEMA = 1
MOST_SIGNS = 20  # seeds of which all sign patterns are listed


def compare(folder: Path, arm_a: str, arm_b: str) -> dict[str, Any]:
    """A − B on every metric as one JSON object. Arms go by any of their names. Raises UserError.

    Where one is merged (`merged`), the error is that of these seeds' differences, not the study's pooled one.
    """
    frame = read_frame(folder)
    a, b = frame.arm(arm_a), frame.arm(arm_b)
    if a == b:
        raise UserError(f"`{arm_a}` and `{arm_b}` are one arm under two names: there is nothing to compare.")
    for arm in (a, b):
        if arm.control:
            raise UserError(
                f"`{arm.name}` checks the study itself and is in no fit; the report's section Controls has its verdict."
            )
        if arm.pooled:
            raise UserError(
                f"`{arm.name}` is one model merged over all seeds: it has no replicates, so no error can be given for "
                "a difference to it. The report shows its values beside the arms'."
            )
    comparisons = Comparisons(frame)
    lines = [_line(frame, comparisons, comparisons.difference(m, a.name, b.name)) for m in frame.metrics]
    tested = [line for line in lines if line["p"] is not None]
    for line, adjusted in zip(tested, statistics.holm([line["p"] for line in tested]), strict=True):
        line["p_holm"] = significant(adjusted)
    return {
        "schema": SCHEMA,
        "study": frame.study,
        "a": {"arm": a.name, "runs": counts_text(frame.count(a.name))},
        "b": {"arm": b.name, "runs": counts_text(frame.count(b.name))},
        "metrics": lines,
    }


def _line(frame: Frame, comparisons: Comparisons, d: Difference) -> dict[str, Any]:
    metric = d.metric
    a, b = frame.at_end(d.arm, metric.name), frame.at_end(d.reference, metric.name)
    by_seed = [a[seed].value - b[seed].value for seed in d.seeds]
    return {
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "unit": "share" if metric.percent else metric.unit,
        "decimals": metric_decimals(comparisons, metric),
        "seeds": list(d.seeds),
        "a": significant(_mean([a[seed].value for seed in d.seeds]), 9),
        "b": significant(_mean([b[seed].value for seed in d.seeds]), 9),
        "difference": significant(d.estimate),
        "merged": d.merged,
        "straying": [] if d.merged else comparisons.straying_in(d),
        "run_se": significant(d.run_se),
        "df": d.df,
        "ci95": None if d.interval is None else [significant(bound) for bound in d.interval],
        "p": significant(_run_level_p(d)),
        "p_holm": None,
        "reason": d.reason or None,
        "sign_flip_p": significant(statistics.sign_flip_test(by_seed)) if 1 < len(by_seed) <= MOST_SIGNS else None,
        "margin": _margin(frame, d),
        "item_se": significant(d.item_se),
        "items": d.items or None,
        "mcnemar": _mcnemar(frame, metric, d),
    }


def _margin(frame: Frame, d: Difference) -> dict[str, Any] | None:
    """Whether A loses less than the study's margin against B, by this comparison alone; None without a margin."""
    margin = frame.compare.not_worse.get(d.metric.name)
    if margin is None:
        return None
    found = against_margin(d, margin, None)
    return {
        "margin": margin,
        "text": margin_text(d.metric, margin),
        "bound": significant(found.bound),
        "alpha": ONE_SIDED,
        "verdict": found.verdict,
    }


def _run_level_p(d: Difference) -> float | None:
    if d.estimate is None or d.run_se is None or d.df is None:
        return None
    return statistics.t_test(d.estimate, d.run_se, d.df)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mcnemar(frame: Frame, metric: Metric, d: Difference) -> list[dict[str, Any]] | None:
    """Seed by seed for right-or-wrong items: those that only A or only B got right. None for other measures."""
    tests = []
    for seed in d.seeds:
        runs = frame.run_of(d.arm, seed), frame.run_of(d.reference, seed)
        a, b = (None if run is None else frame.items(run.name, END, metric) for run in runs)
        if a is None or b is None or a.identity != b.identity or a.ratio:
            return None
        if not {*a.numerator, *b.numerator} <= {0.0, 1.0}:
            return None
        wins = int((a.numerator > b.numerator).sum())
        losses = int((a.numerator < b.numerator).sum())
        tests.append(
            {
                "seed": seed,
                "only_a": wins,
                "only_b": losses,
                "p": significant(statistics.mcnemar_exact(wins, losses)),
                "item_se": significant(statistics.paired_counts_se(wins, losses, len(a.numerator))),
            }
        )
    return tests or None


WIDTH = 80  # columns of a terminal


def compare_text(found: dict[str, Any]) -> str:
    """The comparison as a table for a terminal."""
    a, b = found["a"], found["b"]
    rows = [["metric", "A", "B", "A − B", "95 % interval (runs)", "p Holm", "SE item", "n"]]
    reasons: dict[str, None] = {}
    for line in found["metrics"]:
        rows.append(_text_row(line))
        if line["reason"]:
            reasons[f"run-level error not estimated: {line['reason']}"] = None
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = ["  ".join(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)) for row in rows]
    if widths[0] + 2 + len(numbers[0]) <= WIDTH:
        table = [f"{row[0].ljust(widths[0])}  {line}" for row, line in zip(rows, numbers, strict=True)]
    else:  # names above their numbers
        table = [f"  {numbers[0]}"]
        table += [f"{row[0]}\n  {line}" for row, line in zip(rows[1:], numbers[1:], strict=True)]
    table.insert(1, "─" * len(table[0]))
    partial = [line for line in found["metrics"] if line["difference"] is not None]
    if any(abs(line["a"] - line["b"] - line["difference"]) > 1e-4 * abs(line["a"]) for line in partial):
        reasons["runs are missing: A − B is the least-squares difference given the seeds that are there"] = None
    merged = any(line["merged"] for line in found["metrics"])
    error = "error of these seeds alone (a merged arm)" if merged else "error pooled over all arms of the study"
    straying = [f"{line['metric']} ({', '.join(line['straying'])})" for line in found["metrics"] if line["straying"]]
    if straying:
        reasons[f"varies more over seeds than the other arms, so the interval is too short: {'; '.join(straying)}"] = (
            None
        )
    notes = [
        f"interval: paired by seed, {error}; p adjusted over these metrics (Holm); "
        "SE item: paired over items, n of them",
        *reasons,
        *(_margin_note(line) for line in found["metrics"] if line["margin"] is not None),
    ]
    head = f"{found['study']}: A = {a['arm']} ({a['runs']}), B = {b['arm']} ({b['runs']})"
    return "\n".join([head, "", *table, "", *(textwrap.fill(note, WIDTH) for note in notes)])


def _margin_note(line: dict[str, Any]) -> str:
    kept = line["margin"]
    words = {
        "not worse": f"A is not worse than B by more than {kept['text']}",
        "worse": f"A is worse than B by more than {kept['text']}",
        "not shown": f"neither shown to be within {kept['text']} of B nor beyond",
        "not estimated": f"the margin of {kept['text']} cannot be judged without a run-level error",
    }
    scale = 100.0 if line["unit"] == "share" else 1.0
    end = "" if kept["bound"] is None else f" (bound {bound(kept['bound'] * scale, line['decimals'])}, one-sided 2.5 %)"
    return f"{line['metric']}: {words[kept['verdict']]}{end}"


def _text_row(line: dict[str, Any]) -> list[str]:
    percent = line["unit"] == "share"
    scale, digits = (100.0 if percent else 1.0), line["decimals"]

    def shown(value: float | None, signed: bool = False, extra: int = 0) -> str:
        return "—" if value is None else number(value * scale, digits + extra, signed)

    interval = line["ci95"]
    return [
        f"{line['metric']} {'↑' if line['higher_is_better'] else '↓'}{' %' if percent else ''}",
        shown(line["a"]),
        shown(line["b"]),
        shown(line["difference"], True),
        "—" if interval is None else f"[{bound(interval[0] * scale, digits)}, {bound(interval[1] * scale, digits)}]",
        "—" if line["p_holm"] is None else f"{line['p_holm']:.2g}" if line["p_holm"] else "<1e-12",
        shown(line["item_se"], extra=1),
        str(line["items"] or "—"),
    ]
