"""The caption of the main table: question, model, tokens, seeds, and what every mark in it means."""

from __future__ import annotations

from collections.abc import Sequence

from analysis import render
from analysis.claims import metric_decimals, straying_clauses
from analysis.effects import ALPHA, POWER, Comparisons
from analysis.frame import END, Frame
from analysis.margins import ONE_SIDED, retained
from analysis.metrics import Metric, margin_text, number

LEVEL = f"{100 * (1 - ALPHA):.0f} %"


def caption(frame: Frame, comparisons: Comparisons, metrics: Sequence[Metric]) -> str:
    """One paragraph of plain text, names in backquotes."""
    estimated = any(comparisons.residual_sd(metric.name) is not None for metric in metrics)
    sentences = [
        str(frame.plan.get("question") or "").strip(),
        _what_ran(frame),
        "Means over runs at the end of training; n: runs done of planned.",
        _diverged(frame),
        *(_tested(frame, comparisons) if estimated else [_untested(frame)]),
        *(f"{clause}." for metric in frame.primary for clause in _straying(comparisons, metric)),
        _missing(comparisons, metrics),
        _crossed(frame),
        trunk_text(frame),
        merged_text(frame),
        *_margins(frame, comparisons),
    ]
    if any(_beyond(frame, metric) for metric in metrics):
        sentences.append("†: scored at positions beyond the longest context of the arm's training.")
    return " ".join(sentence for sentence in sentences if sentence)


def _what_ran(frame: Frame) -> str:
    """`0.2M parameters, 2.06M tokens a run, 3 seeds.`"""
    parts = []
    model = frame.plan.get("model") or {}
    if model.get("name"):
        parts.append(f"{model['name']}")
    if model.get("parameters"):
        parts.append(f"{render.tokens_text(int(model['parameters']))} parameters")
    ends = sorted({p.tokens for run in frame.compared_runs if (p := run.point(END)) is not None})
    if ends:
        shown = "–".join(render.tokens_text(tokens) for tokens in dict.fromkeys([ends[0], ends[-1]]))
        parts.append(f"{shown} tokens a run")
    seeds = len(frame.seeds)
    parts.append(f"{seeds} seed{'s' if seeds != 1 else ''} an arm")
    text = ", ".join(parts)
    return text[:1].upper() + text[1:] + "."


def _diverged(frame: Frame) -> str:
    if not any(run.status == "diverged" for run in frame.compared_runs):
        return ""
    return "×k: k runs diverged and are left out."


def _straying(comparisons: Comparisons, metric: Metric) -> list[str]:
    return [f"In `{metric.name}`, {clause}" for clause in straying_clauses(comparisons, metric)]


def _crossed(frame: Frame) -> str:
    if not any(item["code"] == "crossed-seeds" for item in frame.plan.get("lint") or ()):
        return ""
    return "Seeds are crossed: runs that share one are counted as independent, which can make intervals too short."


def _missing(comparisons: Comparisons, metrics: Sequence[Metric]) -> str:
    if not any(comparisons.missing_runs(metric.name) for metric in metrics):
        return ""
    return "Runs are missing: a difference is the least-squares one given the seeds that are there."


def _untested(frame: Frame) -> str:
    if len(frame.seeds) == 1:
        return "Small: difference to the baseline. One seed: its error is not estimated, and nothing is marked or bold."
    return "Small: difference to the baseline. Its error is not estimated yet, and nothing is marked or bold."


def _tested(frame: Frame, comparisons: Comparisons) -> list[str]:
    arms, metrics = comparisons.family
    over = f"{arms} arm{'s' if arms != 1 else ''} and {metrics} metric{'s' if metrics != 1 else ''}"
    sentences = [
        f"Small: difference to `{frame.compare.baseline}` (paired by seed) ± half the width of an interval that holds "
        f"for {over} together at {LEVEL} (Dunnett, Bonferroni; variance pooled over arms{_df(frame, comparisons)}); "
        "*: it excludes 0.",
        "Bold: the best arm and those that cannot be told from it (multiple comparisons with the best, all metrics "
        f"together at {LEVEL}).",
    ]
    seen = _detectable(frame, comparisons)
    if seen:
        sentences.append(
            f"Smallest true difference that would have been seen with a probability of {POWER:.1f}: {seen}."
        )
    return sentences


def trunk_text(frame: Frame) -> str:
    """What no error holds where all seeds go on from one trained state (`seeds.from`); empty where they do not."""
    paths = [set(run.path) for run in frame.runs_of(frame.compare.baseline)]
    common = set.intersection(*paths) if len(paths) > 1 else set()
    if not common:
        return ""
    tokens = render.tokens_text(max(int(frame.segments[state]["tokens_to"]) for state in common))
    return f"All seeds go on from one trunk of {tokens} tokens: what another trunk would have given is in no error."


def merged_text(frame: Frame) -> str:
    """How the merged arms stand beside the tests; empty where there are none. Names in backquotes."""
    names = [f"`{arm.name}`" for arm in frame.compared if arm.merge is not None]
    if not names:
        return ""
    return (
        f"Merged of these runs, so in no test and never marked: {', '.join(names)}; their interval is that of their "
        f"own seeds' differences (t, {LEVEL}) and holds for each alone."
    )


def _df(frame: Frame, comparisons: Comparisons) -> str:
    found = sorted({fit.df for m in frame.primary if (fit := comparisons.fits[m.name]) is not None and fit.df})
    return f", {'–'.join(str(df) for df in dict.fromkeys([found[0], found[-1]]))} df" if found else ""


def _detectable(frame: Frame, comparisons: Comparisons) -> str:
    """The largest minimal detectable effect of each primary metric, in words."""
    shown = []
    for metric in frame.primary:
        found = [d.mde for (_, name), d in comparisons.to_baseline.items() if name == metric.name and d.mde is not None]
        if found:
            unit = f" {metric.difference_unit}" if metric.difference_unit else ""
            value = number(max(found) * metric.scale, metric_decimals(comparisons, metric))
            shown.append(f"{value}{unit} (`{metric.name}`)")
    return ", ".join(shown)


def _margins(frame: Frame, comparisons: Comparisons) -> list[str]:
    if not frame.compare.not_worse:
        return []
    shown = ", ".join(f"{margin_text(frame.by_name[n], m)} in `{n}`" for n, m in frame.compare.not_worse.items())
    found = {kept.verdict for kept in retained(comparisons).values()}
    marks = ["‡: not worse than the baseline by more than the margin"]
    marks += ["§: worse by more than it"] if "worse" in found else []
    return [f"{'; '.join(marks)} ({shown}; one-sided bounds at {100 * ONE_SIDED:g} % for all arms together)."]


def _beyond(frame: Frame, metric: Metric) -> bool:
    values = (frame.values.get((run.name, END, metric.name)) for run in frame.compared_runs)
    folders = (folder for value in values if value is not None for folder in value.evaluations)
    return any(frame.results[folder].get("beyond_trained_length") for folder in folders)
