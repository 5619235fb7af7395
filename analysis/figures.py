"""The report's figures as SVG and PDF: loss curves, learning rate with mixture, scores along training and positions.

matplotlib is imported when a figure is drawn. The same series give the same bytes: ids are salted with the figure's
name and no date is written. Colours are Okabe and Ito's, which colour-blind readers tell apart; the baseline is
black, the control grey, and beyond seven arms the dashes change as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.curves import TOTAL, Line, LossCurves, Schedule
from analysis.positions import ByPosition
from analysis.trajectory import Trajectory

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
FILLS = ("#C9D7E8", "#F2C9A1", "#BFE0CF", "#E8CFE0", "#F3E3A8", "#D5D5D5", "#C8E6F5", "#E0C9B8")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
BASELINE, CONTROL, GRID, INK = "#111111", "#8A8A8A", "#E3E3E3", "#333333"
WIDTH = 10.6  # inches; the page's 1060 px at 100 dpi
MOST_SOURCES = 3  # panels beside that of the whole batch
MOST_STRIPS = 14
MOST_RATES = 10  # schedules that are named
MOST_SCORES = 4  # metrics along training, beside one another
MOST_NAMED = 24  # arms in a legend


class Styles:
    """Colour and dash per arm, the same in every figure."""

    def __init__(self, arms: Sequence[str], baseline: str, control: str | None) -> None:
        others = [arm for arm in arms if arm not in (baseline, control)]
        self._styles: dict[str, dict[str, Any]] = {
            arm: {
                "color": PALETTE[index % len(PALETTE)],
                "linestyle": DASHES[index // len(PALETTE) % len(DASHES)],
                "linewidth": 1.4,
                "zorder": 3,
            }
            for index, arm in enumerate(others)
        }
        self._styles[baseline] = {"color": BASELINE, "linestyle": "-", "linewidth": 1.7, "zorder": 4}
        if control is not None:
            self._styles[control] = {"color": CONTROL, "linestyle": "-", "linewidth": 1.7, "zorder": 2}

    def __getitem__(self, arm: str) -> dict[str, Any]:
        return self._styles[arm]


def loss_figure(curves: LossCurves, styles: Styles) -> Any:
    """Training loss: the shared trunk, then each arm after it; whole batch and per source."""
    totals = curves.arms.get(TOTAL, {})
    sources = sorted((name for name in curves.arms if name != TOTAL), key=lambda n: (-_spread(curves.arms[n]), n))
    panels = [TOTAL, *sources[:MOST_SOURCES]] if len(sources) > 1 else [TOTAL]
    trunk = bool(curves.trunk.x)
    figure, axes = _canvas(len(panels) + trunk, _height(len(totals)))
    if trunk:
        _axis(axes[0], "shared trunk, whole batch", "tokens", "training loss, nats per token")
        axes[0].plot(curves.trunk.x, curves.trunk.y, color=INK, linewidth=1.2)
        _clip_start(axes[0], [curves.trunk.y])
    for axis, source in zip(axes[trunk:], panels, strict=True):
        title = "after it, whole batch" if trunk and source == TOTAL else source or "whole batch"
        label = "" if trunk or source != panels[0] else "training loss, nats per token"
        _axis(axis, title, "tokens", label)
        for arm, line in curves.arms.get(source, {}).items():
            axis.plot(line.x, line.y, label=_shown(arm), **styles[arm])
        _clip_start(axis, [line.y for line in curves.arms.get(source, {}).values()])
        if source == TOTAL:
            for arm, tokens in curves.diverged:
                axis.axvline(tokens, color=styles[arm]["color"], linewidth=0.8, linestyle=":")
                axis.text(tokens, 0.98, "×", color=styles[arm]["color"], transform=axis.get_xaxis_transform())
    _legend(figure, axes[int(trunk)], len(totals))
    return figure


def _spread(lines: Mapping[str, Line]) -> float:
    """How far apart the arms end: sources in which they differ most are the ones to show."""
    ends = [line.y[-1] for line in lines.values()]
    return max(ends) - min(ends)


def schedule_figure(schedules: Sequence[Schedule], shared: int, styles: Styles) -> Any:
    """Learning rate, and the mixture as strips along the path, from a little before the arms part."""
    strips = _strips(schedules)[:MOST_STRIPS]
    rates = _equal_rates(schedules)
    end = max(schedule.mixtures[-1][1] for schedule in schedules)
    start = max(0.0, shared - 0.25 * (end - shared)) if shared else 0.0
    height = max(2.6, 1.1 + 0.36 * len(strips))
    figure, axes = _canvas(2, height, widths=(1.0, 1.25))
    _axis(axes[0], "learning rate", "tokens", "")
    for index, (members, schedule) in enumerate(rates):
        label = _short(members) if index < MOST_RATES else None
        axes[0].plot(schedule.rates.x, schedule.rates.y, label=label, **styles[members[0]])
    axes[0].set_xlim(start, end)
    axes[0].set_ylim(bottom=0)
    axes[0].legend(loc="best", fontsize=7.5, frameon=False, handlelength=2.2)
    _draw_strips(axes[1], strips, start, end)
    return figure


def scores_figure(scores: Sequence[Trajectory], styles: Styles) -> Any:
    """Each metric along training, a line an arm, mean over seeds."""
    shown = scores[:MOST_SCORES]
    arms = dict.fromkeys(arm for trajectory in shown for arm in trajectory.means)
    figure, axes = _canvas(len(shown), _height(len(arms)))
    for axis, trajectory in zip(axes, shown, strict=True):
        metric = trajectory.metric
        unit = f", {metric.unit}" if metric.unit else ""
        _axis(axis, f"{_short([metric.name])} {metric.arrow}{unit}", "tokens", "")
        for arm, by_tokens in trajectory.means.items():
            y = [value * metric.scale for value in by_tokens.values()]
            axis.plot(list(by_tokens), y, label=_shown(arm), marker="o", markersize=2.4, **styles[arm])
    _legend(figure, axes[0], len(arms))
    return figure


def positions_figure(sources: Sequence[ByPosition], styles: Styles) -> Any:
    """Held-out loss by position in the window, a panel a source, a line an arm."""
    shown = sources[:MOST_SCORES]
    arms = dict.fromkeys(arm for source in shown for arm in source.means)
    figure, axes = _canvas(len(shown), _height(len(arms)))
    for axis, source in zip(axes, shown, strict=True):
        _axis(axis, source.source, "position in the window", "" if axis is not axes[0] else "nats per token")
        for arm, line in source.means.items():
            middle = [(low + high) / 2 for low, high, _ in line]
            axis.plot(
                middle, [nats for _, _, nats in line], label=_shown(arm), marker="o", markersize=2.4, **styles[arm]
            )
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
    _legend(figure, axes[0], len(arms))
    return figure


def _draw_strips(axis: Any, strips: Sequence[Strip], start: float, end: float) -> None:
    sources = list(dict.fromkeys(name for strip in strips for _, _, shares in strip.mixtures for name, _ in shares))
    fills = {name: FILLS[index % len(FILLS)] for index, name in enumerate(sources)}
    _axis(axis, "mixture, %", "tokens", "")
    axis.grid(False)
    for row, strip in enumerate(strips):
        for first, last, shares in strip.mixtures:
            left, bottom = max(start, first), row + 0.42
            if last <= left:
                continue
            for name, share in sorted(shares, key=lambda item: sources.index(item[0])):
                height = 0.84 * share
                bottom -= height
                box = {"color": fills[name], "edgecolor": "white", "linewidth": 0.5}
                axis.bar(left, height, last - left, bottom, align="edge", **box)
                if height > 0.2 and last - left > 0.05 * (end - start):  # room for a number
                    place = {"ha": "center", "va": "center", "fontsize": 7, "color": INK}
                    axis.text((left + last) / 2, bottom + height / 2, f"{100 * share:.3g}", **place)
        if strip.contexts:
            text = "context " + " → ".join(f"{length:,}" for length in strip.contexts)
            axis.text(1.01, row, text, transform=axis.get_yaxis_transform(), fontsize=7.5, va="center", color=INK)
    axis.set_xlim(start, end)
    axis.set_ylim(len(strips) - 0.5, -0.5)
    axis.set_yticks(range(len(strips)), [_short(strip.arms, 2) for strip in strips], fontsize=7.5)
    axis.tick_params(axis="y", length=0)
    axis.legend(
        handles=[_patch(fills[name], name) for name in sources],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=min(6, len(sources)),
        fontsize=7.5,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
        borderaxespad=0.1,
    )


@dataclass(frozen=True)
class Strip:
    """Arms that are fed alike. contexts: the path's context lengths in order, empty where no arm differs in them."""

    arms: list[str]
    mixtures: tuple[tuple[int, int, tuple[tuple[str, float], ...]], ...]
    contexts: tuple[int, ...]


def _strips(schedules: Sequence[Schedule]) -> list[Strip]:
    """Arms with one mixture over one path share a strip; context lengths count where arms differ in them."""
    several = len({schedule.lengths for schedule in schedules}) > 1
    groups: dict[Any, Strip] = {}
    for schedule in schedules:
        lengths = schedule.lengths if several else ()
        strip = Strip([], schedule.mixtures, tuple(length for _, _, length in lengths))
        groups.setdefault((schedule.mixtures, lengths), strip).arms.append(schedule.arm)
    return list(groups.values())


def _equal_rates(schedules: Sequence[Schedule]) -> list[tuple[list[str], Schedule]]:
    groups: dict[Any, tuple[list[str], Schedule]] = {}
    for schedule in schedules:
        groups.setdefault(schedule.rates, ([], schedule))[0].append(schedule.arm)
    return list(groups.values())


def _shown(name: str) -> str:
    """A name that a legend shows: matplotlib leaves out those that begin with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def _short(names: Sequence[str], most: int = 1) -> str:
    shown = [name if len(name) <= 28 else name[:27] + "…" for name in names[:most]]
    return _shown(", ".join(shown)) + (f" +{len(names) - most}" if len(names) > most else "")


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, label=_shown(label))


def _canvas(columns: int, height: float, widths: Sequence[float] | None = None) -> tuple[Any, list[Any]]:
    """A figure with one row of panels, drawn without pyplot: no global state, no display."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=widths)
    return figure, list(axes[0])


def _axis(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(xlabel, fontsize=8, color=INK)
    axis.set_ylabel(ylabel, fontsize=8, color=INK)
    axis.tick_params(labelsize=7.5, colors=INK, width=0.6, length=3)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(EngFormatter(sep="", usetex=False))
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.6)


def _clip_start(axis: Any, series: Sequence[Sequence[float]]) -> None:
    """Leave the first steep fall of a from-scratch loss out of the range, so that what follows can be seen."""
    late = [value for y in series for value in y[len(y) // 20 :]]
    if late:
        low, high = min(late), max(late)
        margin = 0.05 * (high - low) or 0.05
        axis.set_ylim(low - margin, high + margin)


def _height(arms: int) -> float:
    """Inches of a figure with a legend of so many arms below it, four to a line."""
    return 3.0 + 0.2 * ((min(arms, MOST_NAMED + 1) + 3) // 4)


def _legend(figure: Any, axis: Any, entries: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        rest = len(handles) - MOST_NAMED
        if rest > 0:
            handles, labels = [*handles[:MOST_NAMED], _patch("none", "")], [*labels[:MOST_NAMED], f"and {rest} more"]
        figure.legend(
            handles,
            [label if len(label) <= 40 else label[:39] + "…" for label in labels],
            loc="outside lower center",
            ncols=min(4, entries),
            fontsize=7.5,
            frameon=False,
            handlelength=2.4,
        )


def _svg(figure: Any, name: str) -> str:
    """The figure as an SVG document without dates; ids carry the figure's name, so that two fit into one page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    return re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{name}-", text)


def _pdf(figure: Any) -> bytes:
    """The figure as a PDF document without dates, for `\\includegraphics`."""
    out = io.BytesIO()
    figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return out.getvalue()


# What a figure shows, for readers who cannot see it; the numbers stand in the tables.
ALTERNATIVES = {
    "loss": "Training loss over tokens, the shared trunk and then one line an arm, whole batch and by source",
    "schedule": "Learning rate over tokens for each arm, and the mixture of sources along each path",
    "scores": "Each metric over tokens trained, one line an arm",
    "positions": "Held-out loss by position in the window, a panel a source, one line an arm",
}


def inline(name: str, svg: str) -> str:
    """The SVG element alone, to be put into a page; width follows the column."""
    element = svg[svg.index("<svg") :]
    said = f' class="figure" role="img" aria-label="{ALTERNATIVES[name.removesuffix(".svg")]}"'
    return re.sub(r' width="[^"]+pt" height="[^"]+pt"', said, element, count=1)


def figure_files(
    curves: LossCurves,
    schedules: Sequence[Schedule],
    scores: Sequence[Trajectory],
    styles: Styles,
    positions: Sequence[ByPosition] = (),
) -> Mapping[str, bytes]:
    """File name → content, an SVG and a PDF for each figure that there is something to draw for."""
    import matplotlib

    # Text stays text, so that it takes the page's font; DejaVu Sans, which matplotlib brings, sets the spacing. A PDF
    # holds its letters as TrueType, which journals ask for, and is not compressed: compressors differ in their bytes.
    fixed: dict[str, Any] = {"svg.hashsalt": "ablate", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]}
    fixed |= {"pdf.fonttype": 42, "pdf.compression": 0, "text.parse_math": False}  # a `$` in a name is a `$`
    files: dict[str, bytes] = {}
    with matplotlib.rc_context({"font.family": "sans-serif", **fixed}):
        drawn = {}
        if curves.arms:
            drawn["loss"] = loss_figure(curves, styles)
        if schedules:
            drawn["schedule"] = schedule_figure(schedules, curves.shared, styles)
        if scores:
            drawn["scores"] = scores_figure(scores, styles)
        if positions:
            drawn["positions"] = positions_figure(positions, styles)
        for name, figure in drawn.items():
            files[f"{name}.svg"] = _svg(figure, name).encode()
            files[f"{name}.pdf"] = _pdf(figure)
    return files
