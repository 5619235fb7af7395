r"""`report/table_main.tex`: the main table of a paper, to be `\input` as it stands.

Needs booktabs and siunitx and no other package; `table*` is a full-width float in two columns and an ordinary one in
one. A mean is a number of siunitx's S column, its difference to the baseline stands small beside it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.caption import caption
from analysis.claims import metric_decimals
from analysis.effects import Comparisons, Difference
from analysis.frame import Frame
from analysis.groups import groups_of
from analysis.margins import Retained, best_arms, retained
from analysis.metrics import Metric, number
from analysis.tables import Row

TEXT_WIDTH = 343.0  # points: one column of LaTeX's article, the narrowest page that the table must fit
TEXT_HEIGHT = 530.0  # points of that page
LINE, CAPTION_LINE, CAPTION_CHARACTERS = 9.7, 12.0, 68  # points, points, letters to a line of the caption
HEAD_LINES = 6  # of each table
MOST_AVERAGED = 12  # rows of averaged weights; where there are more, table.csv has them
NAME_CHARACTERS = 18  # of an arm's name before it is broken
CHARACTER, DIGIT, SMALL_DIGIT, GAP = 4.3, 4.25, 4.0, 7.0  # points, at \footnotesize and \scriptsize
SMALL_CHARACTER = 3.9
MARK = 0.3  # of a digit: what a letter of a mark takes
COUNTS = 24.0  # the column of finished runs
SEPARATION = 2.5  # points on either side of a column
MARKS = {"better": "*", "worse": "*"}
KEPT = {"not worse": r"\ddagger", "worse": r"\S"}
DASH = "{--}"

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
    "θ": r"$\theta$",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "„": ",,",
    "·": r"$\cdot$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "\u00a0": "~",
    "\t": " ",
    "\n": " ",
}
BREAKS = re.compile(r"(?<=[=/_+×-])(?=\w)|(?<=[.,])(?=[A-Za-z])|(?<=\w{12})(?=\w{12})")


def escape(text: str) -> str:
    """Text that pdflatex sets as written. What it has no letter for is named by its code point."""
    return "".join(_character(character) for character in text)


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if character.isascii():
        return character if character.isprintable() else ""
    if 0xC0 <= ord(character) <= 0xFF and character not in "×÷ÐðÞþ":
        return character  # Latin letters that every LaTeX font encoding has
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(SPECIAL.get(c, c) for c in plain) if plain else f"[U+{ord(character):04X}]"


def name(text: str) -> str:
    """A name in typewriter letters that may break after its punctuation, and inside very long words."""
    return r"\texttt{" + _breaking(text) + "}"


def _breaking(text: str) -> str:
    return r"\allowbreak{}".join(escape(part) for part in BREAKS.split(text))


@dataclass(frozen=True, slots=True)
class Entry:
    """One arm's numbers in one metric, as LaTeX; empty where there is none. marks: superscripts."""

    mean: str = ""
    bold: bool = False
    difference: str = ""
    half_width: str = ""
    marks: str = ""

    def latex(self) -> str:
        """The entry's three cells."""
        mean = f"\\bfseries {self.mean}" if self.bold else self.mean or DASH
        tail = f"\\pm{self.half_width}" if self.half_width else ""
        tail += f"^{{{self.marks}}}" if self.marks else ""
        return f"{mean} & {self.difference} & {f'${tail}$' if tail else ''}"


@dataclass(frozen=True)
class Column:
    """One metric: its head and each row's entry, by the row's place."""

    metric: Metric
    entries: Sequence[Entry]

    @property
    def width(self) -> float:
        """Points that its three columns take, about; its name is broken into as many lines as it needs."""
        words = BREAKS.split(self.metric.name)
        units = SMALL_CHARACTER * (len(self.metric.unit) + 6)
        return max(self._numbers, CHARACTER * (max(map(len, words)) + 2), units) + 2 * SEPARATION

    @property
    def _numbers(self) -> float:
        mean = max((len(entry.mean) for entry in self.entries), default=0)
        spread = max((len(e.difference) + len(e.half_width) + MARK * len(e.marks) for e in self.entries), default=0)
        return mean * DIGIT + spread * SMALL_DIGIT + GAP

    @property
    def specification(self) -> str:
        means = _format(entry.mean for entry in self.entries)
        differences = _format(entry.difference for entry in self.entries)
        return (
            rf"S[table-format={means}]@{{\hspace{{3pt}}}}>{{\scriptsize}}S[table-format={differences}]"
            r"@{\,}>{\scriptsize}l"
        )

    @property
    def head(self) -> str:
        arrow = r"$\uparrow$" if self.metric.higher_is_better else r"$\downarrow$"
        unit = f"{escape(self.metric.unit)}, " if self.metric.unit else ""
        points = " pp" if self.metric.percent else ""
        place = rf">{{\centering\arraybackslash}}p{{{self.width - 2 * SEPARATION:.0f}pt}}"
        named = rf"{name(self.metric.name)} {arrow}\newline{{\scriptsize {unit}$\Delta${points}}}"
        return rf"\multicolumn{{3}}{{{place}}}{{{named}}}"


def _format(numbers: Iterable[str]) -> str:
    """siunitx's `table-format` that all of `numbers` fit: sign, integer digits, decimals."""
    whole, decimals, sign = 1, 0, ""
    for text in numbers:
        match = re.fullmatch(r"([+-]?)(\d+)(?:\.(\d+))?", text)
        if match:
            sign = sign or ("+" if match[1] else "")
            whole, decimals = max(whole, len(match[2])), max(decimals, len(match[3] or ""))
    return f"{sign}{whole}.{decimals}"


@dataclass(frozen=True)
class Line:
    """One line of the table body: a row by its place, or the title of a group, or a rule."""

    row: int | None = None
    title: str = ""
    rule: bool = False


def table_main(frame: Frame, comparisons: Comparisons, rows: Sequence[Row]) -> str:
    """The LaTeX of the main table; a table of several floats where the arms do not fit one page."""
    metrics = table_metrics(frame)
    longest = max((len(_label(row)) for row in rows), default=0)
    names = min(longest, NAME_CHARACTERS) * CHARACTER
    blocks = _blocks([_column(comparisons, metric, rows) for metric in metrics], names + COUNTS)
    width = rf">{{\raggedright\arraybackslash}}p{{{names:.0f}pt}}" if longest > NAME_CHARACTERS else "l"
    text = caption(frame, comparisons, metrics)
    floats: list[str] = []
    tall = -(-len(text) // CAPTION_CHARACTERS) * CAPTION_LINE
    for part in _pages(_lines(frame, rows), rows, (TEXT_HEIGHT - tall) / LINE / len(blocks) - HEAD_LINES):
        tables = [_tabular(rows, block, part, width) for block in blocks]
        floats.append(_float(tables, _first_caption(frame, text) if not floats else CONTINUED))
    return HEAD + "\n".join(floats)


HEAD = r"""% The main table, written by `ablate report`. The preamble needs \usepackage{booktabs,siunitx}.
% Every number with its runs and evaluations: table.csv.
"""


def table_metrics(frame: Frame) -> list[Metric]:
    """The primary metrics, then those with a margin."""
    names = dict.fromkeys((*frame.compare.primary, *frame.compare.not_worse))
    return [frame.by_name[name] for name in names]


def _column(comparisons: Comparisons, metric: Metric, rows: Sequence[Row]) -> Column:
    best = best_arms(comparisons, metric) or frozenset()
    margins = retained(comparisons)
    digits = metric_decimals(comparisons, metric)
    return Column(
        metric,
        [
            _entry(
                metric,
                row,
                digits,
                row.label in best and not row.reference,
                None if row.reference else margins.get((row.label, metric.name)),
            )
            for row in rows
        ],
    )


def _entry(metric: Metric, row: Row, digits: int, bold: bool, kept: Retained | None) -> Entry:
    cell = row.cells[metric.name]
    if cell.mean is None:
        return Entry()
    d = cell.difference
    marks = "" if d is None else MARKS.get(d.verdict or "", "")
    marks += KEPT.get(kept.verdict, "") if kept is not None else ""
    marks += r"\dagger" if cell.beyond else ""
    marks += rf"n={cell.n}" if cell.n != row.counts["done"] else ""
    mean = _plain(cell.mean * metric.scale, digits)
    if d is None or d.estimate is None:
        return Entry(mean, bold, marks=marks)
    return Entry(mean, bold, _plain(d.estimate * metric.scale, digits, True), _half_width(d, digits), marks)


def _half_width(d: Difference, digits: int) -> str:
    interval = d.adjusted or d.interval
    return "" if interval is None else _plain((interval[1] - interval[0]) / 2.0 * d.metric.scale, digits)


def _plain(value: float, digits: int, signed: bool = False) -> str:
    return number(value, digits, signed).replace("−", "-")


def _lines(frame: Frame, rows: Sequence[Row]) -> list[Line]:
    """Baseline, control, the other arms by factor, then what is not tested."""
    place = {row.label: index for index, row in enumerate(rows) if not row.reference}
    first = [name for name in (frame.compare.baseline, frame.compare.control) if name in place]
    lines = [Line(place[name]) for name in dict.fromkeys(first)]
    groups = groups_of(frame)
    for index, group in enumerate(groups):
        lines.append(Line(title=group.title, rule=index == 0))
        lines += [Line(place[arm.name]) for arm in group.arms]
    averaged = sum(row.kind == "ema" for row in rows)
    references = [i for i, row in enumerate(rows) if row.reference and (row.kind != "ema" or averaged <= MOST_AVERAGED)]
    if references:
        lines += [Line(title="for reference, not tested", rule=True), *map(Line, references)]
    return lines


def _pages(lines: Sequence[Line], rows: Sequence[Row], room: float) -> list[list[Line]]:
    """The lines in as many floats as they need; no title stands at the foot of one."""
    pages: list[list[Line]] = [[]]
    taken = 0.0
    for line in lines:
        height = 1.4 if line.row is None else math.ceil(1.15 * len(_label(rows[line.row])) / NAME_CHARACTERS)
        if pages[-1] and taken + height + (1 if line.title else 0) > room:
            pages.append([])
            taken = 0.0
        pages[-1].append(line)
        taken += height
    return pages


CONTINUED = [r"\addtocounter{table}{-1}", r"\caption{(continued)}"]


def _first_caption(frame: Frame, text: str) -> list[str]:
    label = re.sub(r"[^A-Za-z0-9]+", "-", frame.study).strip("-") or "study"
    return [rf"\caption{{{_codes(text)}}}", rf"\label{{tab:{label}}}"]


def _float(tables: Sequence[str], head: Sequence[str]) -> str:
    settings = [
        r"\footnotesize",
        rf"\setlength{{\tabcolsep}}{{{SEPARATION:g}pt}}",
        r"\sisetup{detect-weight=true, retain-explicit-plus=true}",
    ]
    begin = [r"\begin{table*}[tp]", r"\centering", r"\setlength{\belowcaptionskip}{4pt}", *head, *settings]
    return "\n".join([*begin, "\n\n\\medskip\n".join(tables), r"\end{table*}", ""])


def _blocks(columns: Sequence[Column], taken: float) -> list[list[Column]]:
    """Metrics side by side as far as the narrowest page allows, in as few tables as they need, evenly filled."""
    blocks: list[list[Column]] = [list(columns)]
    for count in range(1, len(columns) + 1):
        each = -(-len(columns) // count)
        blocks = [list(columns[start : start + each]) for start in range(0, len(columns), each)]
        if all(taken + sum(column.width for column in block) <= TEXT_WIDTH for block in blocks):
            break
    return blocks


def _tabular(rows: Sequence[Row], columns: Sequence[Column], lines: Sequence[Line], width: str) -> str:
    specification = "".join([f"@{{}}{width}", "r", *(column.specification for column in columns), "@{}"])
    count = 2 + 3 * len(columns)
    text = [
        rf"\begin{{tabular}}{{{specification}}}",
        r"\toprule",
        " & ".join(["Arm", r"\multicolumn{1}{r}{$n$}", *(column.head for column in columns)]) + r" \\",
        r"\midrule",
    ]
    for place, line in enumerate(lines):
        if line.row is None:
            text += ([r"\midrule"] if line.rule else [r"\addlinespace[2pt]"]) if place else []
            text.append(rf"\multicolumn{{{count}}}{{@{{}}l@{{}}}}{{\emph{{{escape(line.title)}}}}} \\")
        else:
            cells = [column.entries[line.row].latex() for column in columns]
            text.append(" & ".join([_named(rows[line.row]), _counted(rows[line.row]), *cells]) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"])


def _label(row: Row) -> str:
    if row.kind in ("baseline", "control"):
        return f"{row.label} ({row.kind})"
    if row.kind == "outside":
        return f"{row.label} (outside model)"
    where = row.note.partition(";")[0]
    return f"{row.label}, {where}" if row.kind == "branch" and where else row.label


def _named(row: Row) -> str:
    if row.reference:
        return _breaking(_label(row))
    return name(row.label) + (rf" {{\scriptsize({row.kind})}}" if row.kind in ("baseline", "control") else "")


def _counted(row: Row) -> str:
    """`3/3`, or `2/3` with the number of diverged runs as a superscript."""
    diverged = row.counts.get("diverged", 0)
    return f"{row.counts['done']}/{row.counts['planned']}" + (rf"$^{{\times {diverged}}}$" if diverged else "")


def _codes(text: str) -> str:
    """Text with `…` as names, the rest escaped."""
    parts = text.split("`")
    return "".join(name(part) if index % 2 else escape(part) for index, part in enumerate(parts))
