"""What the figures draw, as plain series: training loss, learning rate and mixture along each arm's path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from analysis.frame import Frame, Run
from harness.plan.schedule import rate
from harness.store import metrics, states
from harness.store.markers import Damaged

TRUNK_BINS = 160  # points of a drawn line; each is the mean of its bin's updates
ARM_BINS = 24  # fewer where arms are told apart: the noise of single batches would hide them
TOTAL = ""  # the name of the whole batch's loss among the sources


@dataclass(frozen=True, slots=True)
class Line:
    """x in tokens of the path; y whatever the figure says."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class LossCurves:
    """Mean training loss over seeds. shared: tokens that all arms have in common; 0 when there are none.

    trunk: over the shared tokens. arms[source][arm]: after them; the source "" is the whole batch. diverged: runs that
    ended early, as (arm, tokens).
    """

    shared: int
    end: int
    trunk: Line
    arms: Mapping[str, Mapping[str, Line]]
    diverged: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one arm is fed: `rates` per token, and (start, end, shares by source) in order."""

    arm: str
    rates: Line
    mixtures: tuple[tuple[int, int, tuple[tuple[str, float], ...]], ...]
    lengths: tuple[tuple[int, int, int], ...]  # (start, end, context length)


def shared_tokens(frame: Frame) -> int:
    """The token up to which all arms' runs with one seed pass through the same states."""
    shared = math.inf
    for seed in frame.seeds:
        paths = [run.path for run in frame.trained_runs if run.seed == seed]
        common = 0
        for step in zip(*paths, strict=False):
            if len(set(step)) > 1:
                break
            common = int(frame.segments[step[0]]["tokens_to"])
        if len(paths) > 1:
            shared = min(shared, common)
    return 0 if math.isinf(shared) else int(shared)


def end_tokens(frame: Frame) -> int:
    """Tokens of the longest path."""
    return max((int(frame.segments[run.path[-1]]["tokens_to"]) for run in frame.trained_runs if run.path), default=0)


def loss_curves(frame: Frame) -> LossCurves:
    """Read every step once and average within bins, then over seeds. Diverged runs are marked, not averaged in."""
    shared, end = shared_tokens(frame), end_tokens(frame)
    rows = {state: _rows(frame, state) for run in frame.trained_runs for state in run.path}
    finite_runs = [run for run in frame.trained_runs if run.status != "diverged"]
    trunk_rows = [_path_rows(rows, run) for run in _one_per_seed(finite_runs)]
    arms: dict[str, dict[str, Line]] = {}
    for arm in frame.compared:
        runs = [_path_rows(rows, run) for run in finite_runs if run.arm == arm.name]
        for source in dict.fromkeys([TOTAL, *_sources(runs)]):
            line = _mean_line(runs, source, shared, end, ARM_BINS)
            if line.x:
                arms.setdefault(source, {})[arm.name] = line
    diverged = tuple(
        (run.arm, tokens)
        for run in frame.trained_runs
        if run.status == "diverged" and (tokens := _last_tokens(_path_rows(rows, run))) is not None
    )
    return LossCurves(shared, end, _mean_line(trunk_rows, TOTAL, 0, shared, TRUNK_BINS), arms, diverged)


def _rows(frame: Frame, state: str) -> list[dict[str, Any]]:
    return metrics.read_steps(frame.folder.state(state)).rows


def _path_rows(rows: Mapping[str, list[dict[str, Any]]], run: Run) -> list[dict[str, Any]]:
    return [row for state in run.path for row in rows[state]]


def _one_per_seed(runs: Iterable[Run]) -> list[Run]:
    return list({run.seed: run for run in runs}.values())


def _sources(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for rows in runs for row in rows for name in row.get("loss_by_source") or {}))


def _last_tokens(rows: Sequence[Mapping[str, Any]]) -> int | None:
    return int(rows[-1]["tokens"]) if rows else None


def _mean_line(runs: Sequence[Sequence[Mapping[str, Any]]], source: str, start: int, end: int, points: int) -> Line:
    """Mean over runs of the mean within each bin of (start, end]; a bin needs every run that reaches it."""
    width = (end - start) / points
    sums: list[dict[int, tuple[float, int]]] = []
    for rows in runs if end > start else ():
        bins: dict[int, tuple[float, int]] = {}
        for row in rows:
            loss = row["loss"] if source == TOTAL else (row.get("loss_by_source") or {}).get(source)
            if start < row["tokens"] <= end and loss is not None and math.isfinite(loss):
                index = min(points - 1, int((row["tokens"] - start - 1) / width))
                total, count = bins.get(index, (0.0, 0))
                bins[index] = (total + loss, count + 1)
        if bins:
            sums.append(bins)
    if not sums:
        return Line((), ())
    common = sorted(set.intersection(*(set(bins) for bins in sums)))
    means = [sum(bins[i][0] / bins[i][1] for bins in sums) / len(sums) for i in common]
    return Line(tuple(start + (i + 0.5) * width for i in common), tuple(means))


def schedules(frame: Frame) -> list[Schedule]:
    """One per arm whose last segment has begun, from the pieces in its `segment.json`."""
    found = []
    for arm in frame.compared:
        for run in frame.runs_of(arm.name) if arm.merge is None else ():
            pieces = _pieces(frame, run)
            if pieces:
                found.append(_schedule(arm.name, pieces))
                break
    return found


def _pieces(frame: Frame, run: Run) -> list[dict[str, Any]]:
    try:
        return list(states.read_segment(frame.folder.state(run.path[-1]))["pieces"])
    except (FileNotFoundError, Damaged):
        return []


def _schedule(arm: str, pieces: Sequence[Mapping[str, Any]]) -> Schedule:
    x: list[float] = []
    y: list[float] = []
    for piece in pieces:
        science = piece["science"]
        batch = int(science["batch_tokens"])
        last = int(piece["end"]) - batch
        stride = max(batch, (last - int(piece["start"])) // 64 // batch * batch)
        for t in dict.fromkeys([*range(int(piece["start"]), last + 1, stride), last]):
            x.append(float(t))
            y.append(rate(science["lr"], t, batch))
    mixtures = tuple(
        (
            int(piece["start"]),
            int(piece["end"]),
            tuple((name, float(Fraction(share))) for name, share in piece["science"]["mixture"].items()),
        )
        for piece in pieces
    )
    lengths = tuple(
        (int(piece["start"]), int(piece["end"]), int(piece["science"]["context"]["length"])) for piece in pieces
    )
    return Schedule(arm, Line(tuple(x), tuple(y)), _joined(mixtures), _joined(lengths))


def _joined(spans: Iterable[tuple[int, int, Any]]) -> tuple[tuple[int, int, Any], ...]:
    """Neighbouring spans with one content made one."""
    joined: list[tuple[int, int, Any]] = []
    for start, end, content in spans:
        if joined and joined[-1][2] == content:
            joined[-1] = (joined[-1][0], end, content)
        else:
            joined.append((start, end, content))
    return tuple(joined)
