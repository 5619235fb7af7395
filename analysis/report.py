"""From a results folder to its report: `report/{index.html, report.md, table.csv, claims.json, figures/*.svg}`.

Works half-way. The same folder gives the same bytes: nothing is read from the clock; the one time that is printed is
that of the newest event in the results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import audit, curves, figures, render
from analysis.claims import answers, claims
from analysis.effects import ALPHA, POWER, Comparisons
from analysis.frame import Frame, Run, read_frame
from analysis.metrics import FAMILY_ORDER, FAMILY_TITLES, Metric
from analysis.tables import Row, build_rows, counts_text, table_csv
from harness.store.atomic import write_bytes, write_json

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
PRIMARY_COLUMNS = 3  # metrics side by side in 1100 px
MATRIX_COLUMNS = 8
BREAKS = re.compile(r"[=,]|[._](?=[^\d])")


def build(folder: Path) -> Path:
    """Write the report of the results in `folder`; returns the path of its page. Raises UserError for other folders."""
    frame = read_frame(folder)
    comparisons = Comparisons(frame)
    rows = build_rows(frame, comparisons)
    drawn = _figures(frame)
    page = _page(frame, comparisons, rows, drawn)
    report = frame.folder.report
    for name, svg in drawn.items():
        write_bytes(report / "figures" / name, svg.encode())
    for name in {"loss.svg", "schedule.svg"} - drawn.keys():
        (report / "figures" / name).unlink(missing_ok=True)  # of an earlier state of the folder
    write_bytes(report / "table.csv", table_csv(frame, comparisons, rows).encode())
    write_json(report / "claims.json", claims(frame, comparisons))
    write_bytes(report / "report.md", _template("report.md.j2").render(page).encode())
    index = report / "index.html"
    write_bytes(index, _template("index.html.j2").render(page).encode())
    return index


def _figures(frame: Frame) -> Mapping[str, str]:
    names = [arm.name for arm in frame.arms]
    styles = figures.Styles(names, frame.compare.baseline, frame.compare.control)
    return figures.figure_texts(curves.loss_curves(frame), curves.schedules(frame), styles)


def _page(frame: Frame, comparisons: Comparisons, rows: Sequence[Row], drawn: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the templates print, as plain values."""
    printers = {m.name: render.Printer(m, comparisons, rows) for m in frame.metrics}
    shown = {m.name: [printers[m.name].cell(row) for row in rows] for m in frame.metrics}
    arms, metrics = comparisons.family
    compared = [row for row in rows if not row.reference]
    return {
        "study": frame.study,
        "question": frame.plan.get("question"),
        "notes": frame.plan.get("notes"),
        "progress": _progress(frame),
        "baseline": frame.compare.baseline,
        "control": frame.compare.control,
        "second_reference": bool(comparisons.to_control),
        "primary_declared": frame.primary_declared,
        "family": {"arms": arms, "metrics": metrics, "level": f"{100 * (1 - ALPHA):.0f} %"},
        "power": f"{100 * POWER:.0f} %",
        "answers": [{"metric": m, "clauses": clauses} for m, clauses in answers(frame, comparisons)],
        "rows": [_row(row) for row in rows],
        "compared": [rows.index(row) for row in compared],
        "primary": _chunks(list(frame.primary), PRIMARY_COLUMNS),
        "matrices": _matrices(frame),
        "metrics": frame.metrics,
        "primary_names": frame.compare.primary,
        "shown": shown,
        "variance": {m.name: _variance(comparisons, m, printers[m.name]) for m in frame.metrics},
        "unvarying": {m.name: comparisons.unvarying(m.name) for m in frame.metrics},
        "beyond": any(cell.beyond for cells in shown.values() for cell in cells),
        "unbalanced": len({frozenset(frame.at_end(a.name, m.name)) for a in frame.arms for m in frame.primary}) > 1,
        "arms": _arm_lines(frame),
        "unfinished": [run for run in frame.runs if run.status != "done"],
        "figures": {name: figures.inline(svg) for name, svg in drawn.items()},
        "lint": frame.plan.get("lint") or [],
        "facts": audit.facts(frame),
        "nondeterministic": audit.nondeterministic(frame),
        "damaged": frame.damaged,
        "settings": audit.task_settings(frame),
        "evaluation": frame.plan.get("eval") or {},
        "seeds": frame.seeds,
        "last_event": audit.last_event(frame),
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
    if fit is None:
        return "no result yet"
    if sd is None:
        why = "there is no second run to compare with" if fit.df == 0 else "the runs do not vary"
        return f"run-level error not estimated: {why}"
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    return f"run-level SD {printer.value(sd, extra=1)}{unit}, measured here: residual of {fit.n} runs, df {fit.df}"


def _arm_lines(frame: Frame) -> list[dict[str, Any]]:
    costs = audit.costs(frame)
    lines = []
    for arm in frame.arms:
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


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["codes"] = _codes
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["md"] = _markdown
    environment.globals["read"] = lambda name: (TEMPLATES / name).read_text("utf-8")
    return environment


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def _breakable(text: str) -> Any:
    """Escaped text that may break after the punctuation of long names, but never inside a number."""
    import markupsafe

    return markupsafe.Markup(BREAKS.sub(r"\g<0><wbr>", str(markupsafe.escape(text))))


def _codes(text: str) -> Any:
    """Escaped text with `…` set as code."""
    import markupsafe

    parts = text.split("`")
    escaped = [str(markupsafe.escape(part)) for part in parts]
    return markupsafe.Markup("".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(escaped)))


def _markdown(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
