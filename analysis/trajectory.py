"""Scores along training: what `eval.at: [every N]` evaluated, for tables and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.frame import EMA, Frame, Run
from analysis.metrics import Metric

MOST_COLUMNS = 12  # points of the table; the figure and the CSV file have all of them


@dataclass(frozen=True)
class Trajectory:
    """One metric at every evaluated point of the path. means[arm][tokens]: over the seeds that have it; complete: only
    where all seeds that have the point do."""

    metric: Metric
    tokens: tuple[int, ...]
    means: Mapping[str, Mapping[int, float]]
    runs: Mapping[str, Mapping[int, int]]


def has_trajectory(frame: Frame) -> bool:
    """Whether the study evaluates every so many tokens."""
    return any(label.isdigit() for label in frame.evaluated_labels)


def trajectories(frame: Frame, metrics: Sequence[Metric]) -> list[Trajectory]:
    """One per metric that has a value anywhere; empty when nothing is evaluated at an interval."""
    if not has_trajectory(frame):
        return []
    found = [_trajectory(frame, metric) for metric in metrics]
    return [trajectory for trajectory in found if trajectory.tokens]


def _trajectory(frame: Frame, metric: Metric) -> Trajectory:
    means: dict[str, dict[int, float]] = {}
    runs: dict[str, dict[int, int]] = {}
    for arm in frame.compared:
        values: dict[int, list[float]] = {}
        for run in frame.runs_of(arm.name):
            for tokens, value in _along(frame, run, metric).items():
                values.setdefault(tokens, []).append(value)
        # A curve over seeds that drop out would bend for no reason, so a point needs every seed of the arm's last one.
        most = max((len(found) for found in values.values()), default=0)
        whole = {tokens: found for tokens, found in sorted(values.items()) if len(found) == most}
        if whole:
            means[arm.name] = {tokens: sum(found) / len(found) for tokens, found in whole.items()}
            runs[arm.name] = {tokens: len(found) for tokens, found in whole.items()}
    return Trajectory(metric, tuple(sorted({tokens for by in means.values() for tokens in by})), means, runs)


def _along(frame: Frame, run: Run, metric: Metric) -> dict[int, float]:
    """The metric at each evaluated point of one path, in tokens; averaged weights are no point of it."""
    found = {}
    for point in run.points:
        value = frame.values.get((run.name, point.label, metric.name))
        if value is not None and point.label != EMA:
            found[point.tokens] = value.value
    return found


def shown_tokens(trajectory: Trajectory) -> tuple[int, ...]:
    """The points of the table: all, or evenly chosen ones with the first and the last."""
    points = trajectory.tokens
    if len(points) <= MOST_COLUMNS:
        return points
    step = (len(points) - 1) / (MOST_COLUMNS - 1)
    return tuple(points[round(index * step)] for index in range(MOST_COLUMNS))


def trajectory_csv(found: Sequence[Trajectory]) -> str:
    """Every point, one line each, in the metric's own unit."""
    lines = ["metric,arm,tokens,n,mean"]
    for trajectory in found:
        for arm, by_tokens in trajectory.means.items():
            for tokens, mean in by_tokens.items():
                lines.append(
                    f"{trajectory.metric.name},{_quoted(arm)},{tokens},{trajectory.runs[arm][tokens]},{mean:.6g}"
                )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text
