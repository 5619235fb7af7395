"""Everything that the templates print, as plain values: what stands on the page, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis import appendix, audit, compute, figures, normalised, render
from analysis.caption import merged_text, trunk_text
from analysis.claims import answers, margin_answers, metric_decimals, straying_clauses
from analysis.continuations import continuations
from analysis.effects import ALPHA, POWER, Comparisons
from analysis.frame import Frame, Run
from analysis.margins import ONE_SIDED, Retained, best_arms, retained
from analysis.metrics import FAMILY_ORDER, FAMILY_TITLES, Metric, margin_text, number
from analysis.tables import Row, counts_text
from analysis.trajectory import Trajectory, shown_tokens

PRIMARY_COLUMNS = 3  # metrics side by side in 1100 px
MATRIX_COLUMNS = 7
LONG = 12  # arms beyond which tables scroll under their heads and can be filtered


def context(
    frame: Frame,
    comparisons: Comparisons,
    rows: Sequence[Row],
    scores: Sequence[Trajectory],
    drawn: Mapping[str, bytes],
) -> dict[str, Any]:
    """What both templates are rendered with. drawn: figure files by name."""
    return {
        **_head(frame, comparisons),
        **_tables(frame, comparisons, rows),
        **_training(frame, comparisons, scores, drawn),
        **_appendix(frame),
        "controls": _controls(frame),
        "continuations": continuations(frame),
    }


def _head(frame: Frame, comparisons: Comparisons) -> dict[str, Any]:
    arms, metrics = comparisons.family
    return {
        "study": frame.study,
        "question": (frame.plan.get("question") or "").strip(),
        "notes": (frame.plan.get("notes") or "").strip(),
        "model": frame.plan.get("model") or {},
        "progress": _progress(frame),
        "baseline": frame.compare.baseline,
        "control": frame.compare.control,
        "second_reference": bool(comparisons.to_control),
        "primary_declared": frame.primary_declared,
        "family": {"arms": arms, "metrics": metrics, "level": f"{100 * (1 - ALPHA):.0f} %"},
        "power": f"{100 * POWER:.0f} %",
        "tested": any(d.adjusted is not None for d in comparisons.to_baseline.values()),
        "answers": [{"metric": m, "clauses": clauses} for m, clauses in answers(frame, comparisons)],
        "margins": [{"metric": m, "clauses": clauses} for m, clauses in margin_answers(frame, comparisons)],
        "one_sided": f"{100 * ONE_SIDED:g} %",
    }


def _tables(frame: Frame, comparisons: Comparisons, rows: Sequence[Row]) -> dict[str, Any]:
    printers = {m.name: render.Printer(m, comparisons, rows) for m in frame.metrics}
    shown = {m.name: [printers[m.name].cell(row) for row in rows] for m in frame.metrics}
    best = {m.name: best_arms(comparisons, m) or frozenset() for m in frame.primary}
    kept = retained(comparisons)
    return {
        "rows": [_row(row) for row in rows],
        "compared": [index for index, row in enumerate(rows) if not row.reference],
        "long": len(frame.compared) > LONG,
        "best": best,
        "kept": {f"{arm}\n{name}": _kept(found, printers[name]) for (arm, name), found in kept.items()},
        "margin_metrics": [frame.by_name[name] for name in frame.compare.not_worse],
        "primary": _chunks(list(frame.primary), PRIMARY_COLUMNS),
        "matrices": _matrices(frame),
        "metrics": frame.metrics,
        "primary_names": frame.compare.primary,
        "shown": shown,
        "variance": {m.name: _variance(comparisons, m, printers[m.name]) for m in frame.metrics},
        "merged_text": merged_text(frame),
        "trunk_text": trunk_text(frame),
        "measured": any(comparisons.residual_sd(m.name) is not None for m in frame.primary),
        "unvarying": {m.name: comparisons.unvarying(m.name) for m in frame.metrics},
        "straying": {m.name: straying_clauses(comparisons, m) for m in frame.metrics},
        "outside": [model.name for model in frame.outside],
        "beyond": any(cell.beyond for cells in shown.values() for cell in cells),
        "unbalanced": any(comparisons.missing_runs(m.name) for m in frame.primary),
        "arms": _arm_lines(frame),
        "costed": _costed(comparisons, printers),
        "report_also": {"flops": "FLOPs", "tokens": "tokens"}.get(frame.compare.report_also or "", ""),
    }


def _training(
    frame: Frame, comparisons: Comparisons, scores: Sequence[Trajectory], drawn: Mapping[str, bytes]
) -> dict[str, Any]:
    return {
        "unfinished": [run for run in frame.runs if run.status != "done"],
        "figures": {name: figures.inline(name, svg.decode()) for name, svg in drawn.items() if name.endswith(".svg")},
        "scores": [_score_table(comparisons, trajectory) for trajectory in scores],
        "lint": frame.plan.get("lint") or [],
        "facts": audit.facts(frame),
        "nondeterministic": audit.nondeterministic(frame),
        "left_out": audit.left_out(frame),
        "damaged": frame.damaged,
        "settings": audit.task_settings(frame),
        "evaluation": frame.plan.get("eval") or {},
        "seeds": frame.seeds,
        "last_event": audit.last_event(frame),
        "compute": compute.statement(frame),
    }


def _appendix(frame: Frame) -> dict[str, Any]:
    return {
        "differences": appendix.differences(frame),
        "configuration": appendix.baseline_configuration(frame),
        "served": appendix.served(frame),
        "environments": appendix.environments(frame),
        "study_text": appendix.study_text(frame),
        "overrides": appendix.overrides(frame),
    }


def _controls(frame: Frame) -> list[dict[str, Any]]:
    """The study's checks of itself, each with its verdict in words; `passed` None is no verdict (yet)."""
    if not frame.plan.get("controls"):
        return []
    from analysis.controls import verdicts

    words = {True: "passed", False: "failed", None: "no verdict"}
    return [{"name": v.name, "verdict": words[v.passed], "sentence": v.sentence} for v in verdicts(frame)]


def _kept(found: Retained, printer: render.Printer) -> dict[str, str]:
    """A margin's verdict as the tables print it."""
    d = found.difference
    return {
        "verdict": found.verdict,
        "css": {"not worse": "better", "worse": "worse", "not shown": "same"}.get(found.verdict, "unknown"),
        "difference": printer.value(d.estimate, True),
        "bound": printer.bound(found.bound),
        "margin": margin_text(d.metric, found.margin),
        "reason": d.reason,
    }


def _costed(comparisons: Comparisons, printers: Mapping[str, render.Printer]) -> list[dict[str, Any]]:
    lines = []
    for found in normalised.costed(comparisons):
        cells = {}
        for metric in comparisons.frame.primary:
            d = comparisons.to_baseline.get((found.arm, metric.name))
            per = found.differences.get(metric.name)
            printer = printers[metric.name]
            cells[metric.name] = {
                "difference": printer.value(d.estimate if d else None, True),
                "per": printer.value(per.estimate if per else None, True),
                "interval": printer.interval(per.interval) if per and per.interval else "",
            }
        lines.append(
            {
                "arm": found.arm,
                "tokens": render.tokens_text(found.tokens),
                "flops": render.flops_text(found.flops),
                "ratio": "=" if found.equal else f"{found.ratio:.3g}" if found.ratio else render.MISSING,
                "cells": cells,
            }
        )
    return lines


def _score_table(comparisons: Comparisons, trajectory: Trajectory) -> dict[str, Any]:
    """One metric along training: a line an arm, a column a point."""
    metric = trajectory.metric
    digits = metric_decimals(comparisons, metric)
    tokens = shown_tokens(trajectory)
    return {
        "metric": metric,
        "tokens": [render.tokens_text(at) for at in tokens],
        "more": len(trajectory.tokens) - len(tokens),
        "lines": [
            {
                "arm": arm,
                "runs": counts_text(comparisons.frame.count(arm)),
                "cells": [number(by[at] * metric.scale, digits) if at in by else render.MISSING for at in tokens],
            }
            for arm, by in trajectory.means.items()
        ],
    }


def _progress(frame: Frame) -> str:
    """`18 of 21 runs finished, 1 diverged, 2 unfinished`."""
    runs: Sequence[Run] = frame.runs
    counts: dict[str, int] = {"planned": len(runs)}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    first, *others = counts_text(counts).split(", ")
    return ", ".join([f"{first} runs finished", *others])


def _row(row: Row) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "label": row.label,
        "aliases": row.aliases,
        "note": row.note,
        "reference": row.reference,
        "seeds": _states_text(row) if row.reference else counts_text(row.counts),
        "complete": row.complete,
    }


def _states_text(row: Row) -> str:
    planned, done = row.counts["planned"], row.counts["done"]
    if row.kind == "outside":
        return "1 model" if done else "not evaluated whole"
    noun = "state" if planned == 1 else "states"
    return f"{planned} {noun}" if done == planned else f"{done} of {planned} {noun}"


def _chunks(metrics: Sequence[Metric], size: int) -> list[list[Metric]]:
    """Columns in as few tables as fit, evenly filled."""
    if not metrics:
        return []
    tables = -(-len(metrics) // size)
    each = -(-len(metrics) // tables)
    return [list(metrics[i : i + each]) for i in range(0, len(metrics), each)]


def _matrices(frame: Frame) -> list[list[dict[str, Any]]]:
    """Tables of all metrics: each a list of families with their metrics, in as few tables as fit the page."""
    tables: list[list[dict[str, Any]]] = []
    room = 0
    for family in FAMILY_ORDER:
        members = [m for m in frame.metrics if m.family == family]
        for chunk in _chunks(members, MATRIX_COLUMNS):
            if len(chunk) > room:
                tables.append([])
                room = MATRIX_COLUMNS
            tables[-1].append({"title": FAMILY_TITLES[family], "metrics": chunk})
            room -= len(chunk)
    return tables


def _variance(comparisons: Comparisons, metric: Metric, printer: render.Printer) -> str:
    """Which variance the errors rest on, in words."""
    fit = comparisons.fits[metric.name]
    sd = comparisons.residual_sd(metric.name)
    if fit is None or sd is None:
        return f"run-level error not estimated: {comparisons.why_no_error(metric.name)}"
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    return f"run-level SD {printer.value(sd, extra=1)}{unit}, measured here: residual of {fit.n} runs, df {fit.df}"


def _arm_lines(frame: Frame) -> list[dict[str, Any]]:
    costs = audit.costs(frame)
    lines = []
    for arm in (*frame.compared, *frame.pooled):
        cost = costs[arm.name]
        role = {frame.compare.control: "control", frame.compare.baseline: "baseline"}.get(arm.name, "")
        lines.append(
            {
                "name": arm.name,
                "aliases": arm.aliases,
                "role": role,
                "changes": render.change_lines(arm.changes),
                "seeds": counts_text(frame.count(arm.name)),
                "tokens": render.tokens_text(cost.tokens),
                "own_tokens": render.tokens_text(cost.own_tokens),
                "flops": render.flops_text(cost.flops),
                "own_flops": render.flops_text(cost.own_flops),
                "exact": f"{cost.tokens:,} tokens, {cost.own_tokens:,} of them in this arm alone",
            }
        )
    return lines
