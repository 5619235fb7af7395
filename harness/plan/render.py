"""A plan as text for a terminal: what would run and why, what it costs, what cannot be compared."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.plan.exposure import Views, epochs
from harness.plan.lint import source_tokens
from harness.plan.merges import normalised

if TYPE_CHECKING:
    from harness.plan.plan import Plan
    from harness.plan.tree import Segment
    from harness.study.merges import Merge

MOST_ARMS = 60
MOST_DAMAGE = 8

NO_VIEWS: Views = {}


def text(plan: Plan, pools: Mapping[str, int] | None = None, width: int = 80, shared: Views = NO_VIEWS) -> str:
    """The plan in `width` columns. pools: training tokens of each resolved source, for epochs, counted over all views
    of one pool (`shared`)."""
    parts = [
        _head(plan, width),
        _arms(plan, width),
        _controls(plan, width),
        _work(plan, width),
        _exposures(plan, pools or {}, width, shared),
        _cost(plan),
        _findings(plan, width),
    ]
    return "\n\n".join(part for part in parts if part)


def damage(found: Sequence[str], width: int = 80) -> str:
    """A paragraph for each thing that should be whole and is not."""
    shown = [f"damaged: {one}" for one in found[:MOST_DAMAGE]]
    if len(found) > MOST_DAMAGE:
        shown.append(f"… and {len(found) - MOST_DAMAGE} more (`ablate verify DIR` names them all)")
    return "\n".join(line for one in shown for line in textwrap.wrap(one, width, subsequent_indent="  "))


def record(folder: str, width: int = 80) -> str:
    said = (
        f"{folder} is the record of a study, without manifests and weights; this is the plan of an empty folder. "
        "Before `ablate run`, move it aside or choose another folder with -o."
    )
    return "\n".join(textwrap.wrap(said, width))


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = (), width: int = 80, names: int | None = 0) -> str:
    """Aligned columns, the first row a header. `right`: columns of numbers. Text columns give way to `width`, the
    widest first, the column of `names` last."""
    numbers = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = sorted((i for i in range(len(widths)) if i not in numbers), key=lambda i: (i == names, -widths[i]))
    for i in texts:
        over = sum(widths) + 2 * (len(widths) - 1) - width
        if over > 0:
            widths[i] = max(8, widths[i] - over)
    lines = []
    for row in rows:
        cells = [_fit(cell, widths[i]) for i, cell in enumerate(row)]
        cells = [cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i]) for i, cell in enumerate(cells)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def count(number: float) -> str:
    """A token count as people read it: 9,728 as it is, above that 261k, 2.06M, 10.5B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= 0.9995 * size:  # 999.9M is 1B in three digits
            return f"{number / size:.3g}{unit}"
    if number >= 1e4:
        return f"{number / 1e3:.3g}k"
    return f"{number:,.0f}"


def _head(plan: Plan, width: int) -> str:
    spec = plan.study.spec
    lines = [f"study {spec.study}: {len(plan.arms)} arms, {len(plan.runs)} runs, {len(plan.segments)} segments"]
    if spec.question:
        lines += textwrap.wrap(spec.question, width, initial_indent="  ", subsequent_indent="  ")
    if plan.unresolved:
        what = ", ".join(plan.unresolved)
        lines += textwrap.wrap(f"unresolved (no manifest yet, `ablate run` makes it): {what}", width)
    lines += [line for note in plan.study.notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]
    return "\n".join(lines)


def _arms(plan: Plan, width: int) -> str:
    work = _work_by_arm(plan)
    rows = [["arm", "changes", "to train", "why"]]
    for arm in plan.arms[:MOST_ARMS]:
        if arm.merge:
            changes = _made_of(next(merge for merge in plan.study.merges if merge.name == arm.name), plan)
        else:
            levels = plan.study.arm(arm.name).levels
            changes = ", ".join(f"{path.removeprefix('stages.')}={_flat(level)}" for path, level in levels.items())
        if arm.same_as is not None:
            rows.append([arm.name, changes, "", f"same as {arm.same_as}"])
            continue
        tokens, why = work[arm.name]
        why = f"held: {plan.held[arm.name]}" if arm.name in plan.held else why
        rows.append([arm.name, "" if arm.name == changes else changes, f"{tokens:,}" if tokens else "-", why])
    if all(row[1] in ("", row[0]) for row in rows[1:]):
        rows = [[row[0], *row[2:]] for row in rows]
    text = table(rows, right=[len(rows[0]) - 2], width=width)
    rest = len(plan.arms) - MOST_ARMS
    return text + (f"\n… and {rest} more arms (--json has them all)" if rest > 0 else "")


def _made_of(merge: Merge, plan: Plan) -> str:
    """`1/3 math=0.1 + 2/3 math=0.3`, `mean of 3 seeds of default`, `5 checkpoints of no-decay, linear`."""
    seeds = [seeds.name for seeds in plan.study.seed_sets]
    if merge.of == "checkpoints":
        shape = "weighted" if merge.decay is None else merge.decay
        left = f" to {float(merge.to):g}" if merge.to else ""
        return f"{merge.over // merge.every + 1} checkpoints of {merge.arms[0]}, {shape}{left}"
    if merge.of == "seeds" and merge.weights is None:
        return f"mean of {len(seeds)} seeds of {merge.arms[0]}"
    parts = merge.arms if merge.of == "arms" else seeds
    shown = [f"{c} {part}" for c, part in zip(normalised(merge.weights, len(parts)), parts, strict=True)]
    return " + ".join(shown) + (f" of {merge.arms[0]}" if merge.of == "seeds" else "")


def _controls(plan: Plan, width: int) -> str:
    """What must hold first, and which arms wait for it."""
    lines = []
    for control in plan.study.controls:
        if control.kind == "same_as":
            seeds = ", ".join(seeds.name for seeds in control.seeds)
            said = f"control {control.name}: {control.arm} again with the seeds {seeds}, must not differ from it"
        else:
            said = (
                f"control {control.name}: {control.metric} of {control.arm} at {control.at} must come to "
                f"{control.value:g} ± {control.tolerance:g}"
            )
        lines += textwrap.wrap(said, width, subsequent_indent="  ")
    by_reason: dict[str, list[str]] = {}
    for arm, reason in plan.held.items():
        by_reason.setdefault(reason, []).append(arm)
    for reason, arms in by_reason.items():
        shown = ", ".join(arms[:6]) + (f" and {len(arms) - 6} more" if len(arms) > 6 else "")
        lines += textwrap.wrap(f"held ({reason}): {shown}", width, subsequent_indent="  ")
    return "\n".join(lines)


def _work_by_arm(plan: Plan) -> dict[str, tuple[int, str]]:
    """Tokens that each arm alone still has to train (shared segments count for the first arm that needs them)."""
    result: dict[str, tuple[int, str]] = {}
    counted: set[str] = set()
    for run in plan.runs:
        tokens, _ = result.get(run.arm, (0, ""))
        states = Counter[str]()
        for name in run.path:
            segment = plan.segments[name]
            states[segment.state] += 1
            if segment.needed and name not in counted:
                counted.add(name)
                tokens += segment.tokens_to - segment.start_tokens
        last = plan.segments[run.path[-1]]
        result[run.arm] = (tokens, last.state if not last.needed or last.state != "new" else last.reason)
    return result


def _work(plan: Plan, width: int) -> str:
    """Segments grouped by what happens to them; everything that is not simply new or done is named."""
    states = Counter(segment.state for segment in plan.segments.values())
    lines = ["segments: " + ", ".join(f"{number} {state}" for state, number in sorted(states.items()))]
    special = [s for s in plan.segments.values() if s.needed and (s.state != "new" or s.start_path)]
    for segment in special[:12]:
        lines += textwrap.wrap(_segment_line(plan, segment), width, initial_indent="  ", subsequent_indent="    ")
    if len(special) > 12:
        lines.append(f"  … and {len(special) - 12} more")
    if states["stale"] and plan.study.spec.stale == "reuse":
        said = f"stale: {states['stale']} segments were trained by other code and are used; see `stale` of the study"
        lines += textwrap.wrap(said, width, subsequent_indent="  ")
    if plan.orphans:
        lines.append(f"orphans: {len(plan.orphans)} states in the folder belong to no arm of this study any more")
    return "\n".join(lines)


def _segment_line(plan: Plan, segment: Segment) -> str:
    run = plan.runs[segment.run]
    return (
        f"{segment.state} {segment.id[:8]} {run.name} {segment.stage} "
        f"[{segment.tokens_from:,}, {segment.tokens_to:,}): {segment.reason}"
    )


def _held_out(plan: Plan) -> bool:
    return plan.study.spec.eval.held_out != "none"


def _exposures(plan: Plan, pools: Mapping[str, int], width: int, shared: Views) -> str:
    """Tokens asked of each source over the whole path, and epochs of its pool, per arm."""
    names = list(plan.study.sources)
    trained = {run.arm for run in plan.runs}
    rows = [["tokens served (epochs)", *names]]
    for arm in plan.study.arms:
        if arm.name not in trained or len(rows) > MOST_ARMS:
            continue
        tokens = source_tokens(arm.treatment)
        cells = []
        often = epochs(tokens, pools, shared)
        for name in names:
            asked = tokens.get(name, 0)
            times = f" ({float(often[name]):.2f})" if asked and name in often else ""
            cells.append(f"{count(asked)}{times}" if asked else "-")
        rows.append([arm.name, *cells])
    shown = table(rows, right=range(1, len(names) + 1), width=width)
    if any(stage.context.packing == "best-fit" for arm in plan.study.arms for stage in arm.treatment.stages):
        shown += "\nbest-fit packing: padding counts as tokens served, so epochs are at most these"
    return shown


def _cost(plan: Plan) -> str:
    totals = plan.totals
    shared, unshared = totals["tokens"], totals["tokens_unshared"]
    saved = f" ({1 - shared / unshared:.0%} saved by sharing)" if unshared else ""
    lines = [
        f"tokens: {count(shared)} shared, {count(unshared)} unshared{saved}",
        f"to train now: {count(totals['tokens_to_train'])} tokens",
    ]
    if totals["flops"] is not None:
        lines.append(f"FLOPs: {totals['flops']:.3g}; GPU-hours: {_hours(totals['gpu_hours'])}")
        lines.append(f"  {totals['gpu_hours_basis']}")
        lines.append(f"disk: about {_bytes(totals['disk_bytes'])} of checkpoints")
    if totals["sbatch_calls"]:
        lines.append(f"with --executor slurm: {totals['sbatch_calls']} calls of sbatch")
    open_yet = any(name.startswith("sources.") for name in plan.unresolved)
    more = ", and those of held-out text, once its sources are resolved" if _held_out(plan) and open_yet else ""
    lines.append(f"evaluations to do: {totals['evals_to_do']}{more}")
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _findings(plan: Plan, width: int) -> str:
    lines = []
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for item in plan.lint:
        grouped.setdefault((item.level, item.code, item.message), []).append(item.arm)
    for (level, code, message), arms in grouped.items():
        who = ", ".join(arm for arm in arms[:4] if arm) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")
        line = f"{level} {code}" + (f" [{who}]" if who else "") + f": {message}"
        lines += textwrap.wrap(line, width, subsequent_indent="  ")
    return "\n".join(lines)


def _flat(level: object) -> str:
    """A level as it is written in YAML, on one line."""
    if isinstance(level, dict):
        return "{" + ", ".join(f"{key}: {_flat(value)}" for key, value in level.items()) + "}"
    return str(level)


def _fit(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"
