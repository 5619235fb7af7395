"""From a results folder to its report, `report/`: a page, a Markdown file, tables for a paper, figures, claims.

Works half-way. The same folder gives the same bytes: nothing is read from the clock; the one time that is printed is
that of the newest event in the results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import appendix, curves, figures, reproduce
from analysis.claims import claims
from analysis.effects import Comparisons
from analysis.frame import Frame, read_frame
from analysis.latex import table_main, table_metrics
from analysis.page import context
from analysis.positions import by_position
from analysis.tables import build_rows, table_csv
from analysis.trajectory import Trajectory, trajectories, trajectory_csv
from harness.store.atomic import write_bytes, write_json

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
BREAKS = re.compile(r"[=,]|[._](?=[^\d])")


def build(folder: Path) -> Path:
    """Write the report of the results in `folder`; returns the path of its page. Raises UserError for other folders."""
    frame = read_frame(folder)
    comparisons = Comparisons(frame)
    rows = build_rows(frame, comparisons)
    scores = trajectories(frame, table_metrics(frame))
    drawn = _figures(frame, scores)
    page = context(frame, comparisons, rows, scores, drawn)
    files = {
        **{f"figures/{name}": content for name, content in drawn.items()},
        "table.csv": table_csv(frame, comparisons, rows).encode(),
        "table_main.tex": table_main(frame, comparisons, rows).encode(),
        "attempts.csv": appendix.attempts_csv(frame).encode(),
        "reproduce.sh": reproduce.script(frame).encode(),
        "report.md": _template("report.md.j2").render(page).encode(),
        "index.html": _template("index.html.j2").render(page).encode(),
    }
    if scores:
        files["scores.csv"] = trajectory_csv(scores).encode()
    report = frame.folder.report
    for name, content in files.items():
        write_bytes(report / name, content)
    write_json(report / "claims.json", claims(frame, comparisons))
    script = report / "reproduce.sh"
    mode = script.stat().st_mode
    script.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it
    for name in {*OPTIONAL} - files.keys():
        (report / name).unlink(missing_ok=True)  # of an earlier state of the folder
    return report / "index.html"


# What is there only while there is something to show.
OPTIONAL = (
    *(f"figures/{name}.{kind}" for name in ("loss", "schedule", "scores", "positions") for kind in ("svg", "pdf")),
    "scores.csv",
)


def _figures(frame: Frame, scores: Sequence[Trajectory]) -> Mapping[str, bytes]:
    names = [arm.name for arm in frame.compared]
    styles = figures.Styles(names, frame.compare.baseline, frame.compare.control)
    losses, schedules = curves.loss_curves(frame), curves.schedules(frame)
    return figures.figure_files(losses, schedules, scores, styles, by_position(frame))


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
    environment.filters["clip"] = _clip
    environment.filters["code"] = _code
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


def _clip(text: str, most: int) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _code(text: str) -> str:
    """Text as code in a cell of a Markdown table, whatever it holds."""
    quoted = _markdown(text).replace("`", "'")
    return f"`{quoted}`" if quoted.strip() else "(nothing)"


def _markdown(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
