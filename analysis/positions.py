"""Held-out loss by position in the window: whether a longer context is used, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.frame import END, Frame

_BUCKET = re.compile(r"bpb\.(?P<source>.+)\.nats_per_token\[(?P<low>\d+),(?P<high>\d+)\)")


@dataclass(frozen=True)
class ByPosition:
    """One held-out source at the end of training. means[arm]: (low, high, nats per token at positions [low, high)),
    ascending, mean over the seeds, only where every finished seed has it."""

    source: str
    means: Mapping[str, tuple[tuple[int, int, float], ...]]


def by_position(frame: Frame) -> list[ByPosition]:
    """One per source; empty where the study does not ask for `held_out.by_position`."""
    buckets: dict[str, list[tuple[int, int, str]]] = {}
    for name in dict.fromkeys(metric for _, label, metric in frame.values if label == END):
        found = _BUCKET.fullmatch(name)
        if found:
            buckets.setdefault(found["source"], []).append((int(found["low"]), int(found["high"]), name))
    return [ByPosition(source, _means(frame, sorted(parts))) for source, parts in buckets.items()]


def _means(frame: Frame, parts: list[tuple[int, int, str]]) -> dict[str, tuple[tuple[int, int, float], ...]]:
    means: dict[str, tuple[tuple[int, int, float], ...]] = {}
    for arm in frame.compared:
        runs = [run.name for run in frame.runs_of(arm.name)]
        line = []
        for low, high, metric in parts:
            values = [frame.values[run, END, metric].value for run in runs if (run, END, metric) in frame.values]
            if values and len(values) == len(runs):
                line.append((low, high, sum(values) / len(values)))
        if line:
            means[arm.name] = tuple(line)
    return means
