"""What a study has cost on the cluster and what is left of it, in GPU-hours.

What was spent is the time of its jobs, by their own logs. What is left follows from floating-point operations: at the
speed that the study's own training has shown (once there is any), before that at an assumed one. A job without a GPU
counts as one.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.launch.slurm import resources
from harness.launch.slurm.seen import Seen, Submission
from harness.plan import cost
from harness.store import attempts, metrics, submissions
from harness.store.layout import Folder, StateFolder

if TYPE_CHECKING:
    from harness.launch.work import Work
    from harness.plan.plan import Plan

MOST = 64  # states whose speed is looked at


@dataclass(frozen=True)
class Speed:
    """Floating-point operations per second and GPU, and where the figure is from."""

    flops: float
    basis: str


def spent(seen: Seen, now: float | None = None) -> float:
    """GPU-hours of all jobs so far, each life of a task from its first word to its last sign of life."""
    now = time.time() if now is None else now
    return sum(_seconds(one, index, now) * devices(one.intent.parameters) for one, index in _tasks(seen)) / 3600


def _tasks(seen: Seen) -> list[tuple[Submission, int]]:
    return [
        (one, index)
        for one in seen.submissions
        if one.intent.kind == "work"
        for index in sorted({*one.live, *one.gone})
    ]


def devices(parameters: Mapping[str, Any]) -> int:
    return max(1, resources.gpus(parameters))


def _seconds(submission: Submission, index: int, now: float) -> float:
    total = 0.0
    lives = _lives(submissions.read_log(submission.folder, index))
    for at, life in enumerate(lives):
        last = float(life[-1]["time"])
        if life[-1]["kind"] not in ("left", "requeue", "crashed"):
            running = at == len(lives) - 1 and index in submission.live and submission.live[index].state == "RUNNING"
            last = now if running else max(last, _sign_of_life(submission, index, life, last))
        total += last - float(life[0]["time"])
    return total


def _lives(log: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """A task's log, cut where Slurm started it anew."""
    found: list[list[Mapping[str, Any]]] = []
    for line in log:
        if line["kind"] == "started":
            found.append([])
        if found:
            found[-1].append(line)
    return found


def _sign_of_life(submission: Submission, index: int, life: Sequence[Mapping[str, Any]], last: float) -> float:
    """When the last attempt of a life that ended without a word was seen alive, by its pulse."""
    begun = [line["item"] for line in life if line["kind"] == "began"]
    if not begun:
        return last
    state = Folder(submission.folder.root.parents[1]).state(begun[-1].partition(":")[2])
    own = (submission.number, index, life[0].get("restart"))
    newest = last
    for number in state.attempt_numbers():
        by = (attempts.read_env(state, number) or {}).get("slurm") or {}
        if (by.get("submission"), by.get("index"), by.get("restart")) == own:
            with contextlib.suppress(OSError):
                newest = max(newest, (state.attempt(number) / attempts.PULSE).stat().st_mtime)
    return newest


def speed(plan: Plan, folder: Folder) -> Speed:
    """The study's own speed where a segment has been trained for a while, else the assumed one."""
    found = []
    for segment in list(plan.segments.values()):
        if segment.flops is None or segment.kind != "train" or len(found) >= MOST:
            continue
        pace = _pace(folder.state(segment.id))
        if pace is not None:
            found.append(pace * segment.flops / max(1, segment.tokens_to - segment.tokens_from))
    if not found:
        return Speed(cost.PEAK_FLOPS * cost.ASSUMED_UTILISATION, cost.GPU_HOURS_BASIS)
    middle = statistics.median(found)
    return Speed(middle, f"measured: {middle / 1e12:.3g} TFLOP/s per GPU in {len(found)} segments of this study")


def _pace(state: StateFolder) -> float | None:
    """Tokens per second and GPU that the newest attempt with a figure has shown, on as many GPUs as it had itself."""
    for number in reversed(state.attempt_numbers()):
        row = metrics.last_row(state, [number])
        if row is not None:
            numerics = (attempts.read_env(state, number) or {}).get("numerics") or {}
            gpus = int(numerics.get("world") or 1) if numerics.get("device") != "cpu" else 1
            return float(row.get("tokens_per_second") or 0) / gpus or None
    return None


def of_item(item: Work, plan: Plan, speed: Speed) -> float:
    """GPU-hours that an item's training takes; 0 for what does not train, which is not known before it is timed."""
    segment = plan.segments.get(item.state)
    if item.kind != "train" or segment is None or not segment.flops:
        return 0.0
    share = item.tokens / max(1, segment.tokens_to - segment.tokens_from)
    return segment.flops * share / speed.flops / 3600
