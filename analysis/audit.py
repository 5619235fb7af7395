"""What a reader must know before believing a table: numerics, code, cost, settings of the evaluation, damage."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.compute import attempts_at
from analysis.frame import Frame
from analysis.outside import OUTSIDE
from harness.store import attempts, metrics, states
from harness.store.markers import Damaged

# What an attempt's environment says about what it computed; host, user and process say nothing about it.
COMPUTED = ("numerics", "code", "versions", "ran")

HEX = re.compile("[0-9a-f]{40,}")


@dataclass(frozen=True, slots=True)
class Fact:
    """A field of the attempts' environment: each value with the arms in whose path it occurs."""

    name: str
    values: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def differs(self) -> bool:
        return len(self.values) > 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run: the whole path from token 0, and what no other arm shares. FLOPs None when the model is unknown."""

    tokens: int
    own_tokens: int
    flops: int | None
    own_flops: int | None


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """How a task was evaluated: `common` settings, and those that are not the same in all results."""

    task: str
    items: str
    common: Mapping[str, str]
    differing: Mapping[str, tuple[str, ...]]


def facts(frame: Frame) -> list[Fact]:
    """Numerics and code of all attempts on the arms' paths, fields in name order; of merges, which run no model, no
    numerics; of outside models, what they were evaluated with."""
    seen: dict[str, dict[str, dict[str, None]]] = {}
    paths = dict.fromkeys(state for run in frame.runs for state in run.path)
    environments = {state: _environments(frame, state) for state in paths}
    for run in frame.runs:
        for state in run.path:
            for environment in environments[state]:
                for name, value in environment.items():
                    seen.setdefault(name, {}).setdefault(value, {})[run.arm] = None
        for point in run.points:
            for name, value in _evaluation_numerics(frame, run.name, point.label).items():
                seen.setdefault(name, {}).setdefault(value, {})[run.arm] = None
    for model in frame.outside:
        for name, value in _evaluation_numerics(frame, model.name, OUTSIDE).items():
            seen.setdefault(name, {}).setdefault(value, {})[model.name] = None
    return [
        Fact(name, tuple((value, tuple(arms)) for value, arms in sorted(values.items())))
        for name, values in sorted(seen.items())
    ]


def _evaluation_numerics(frame: Frame, run: str, label: str) -> dict[str, str]:
    """Where a point's evaluations were computed: `evaluation.device` and so on; the last one where they differ."""
    numerics: dict[str, str] = {}
    for metric in frame.metrics:
        value = frame.values.get((run, label, metric.name))
        for folder in value.evaluations if value is not None else ():
            numerics |= _flat(frame.result(folder).get("numerics") or {}, "evaluation.")
    return numerics


def _environments(frame: Frame, state: str) -> list[dict[str, str]]:
    """Of each attempt at a state; how often a kernel was launched is left out, which the length of a row decides, and
    of a merge, which runs no model, the numerics."""
    merged = (frame.segments.get(state) or {}).get("kind") == "merge"
    found = (computed_with(attempt.environment) for attempt in attempts_at(frame.folder.state(state), 0))
    return [
        {
            name: text
            for name, text in facts.items()
            if name != "ran.launched" and not (merged and name.startswith("numerics."))
        }
        for facts in found
    ]


def computed_with(environment: Mapping[str, Any]) -> dict[str, str]:
    """Numerics, code and versions of an attempt, flat: `numerics.threads` and so on."""
    return _flat({name: environment[name] for name in COMPUTED if name in environment})


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"numerics": {"threads": 1}}` as `{"numerics.threads": "1"}`."""
    flat: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _text(inner)
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nondeterministic(frame: Frame) -> list[tuple[str, int]]:
    """(run, token) of states where two attempts computed one update differently."""
    found = {}
    for run in frame.runs:
        for state in run.path:
            if state not in found:
                disagreements = metrics.read_steps(frame.folder.state(state)).disagreements
                found[state] = (run.name, disagreements[0]) if disagreements else None
    return [place for place in found.values() if place is not None]


def left_out(frame: Frame) -> list[tuple[str, int]]:
    """(run, updates) of runs in which `optimizer.skip_spikes` left updates out, as far as they are trained."""
    counts: dict[str, int] = {}
    found = []
    for run in frame.runs:
        for state in run.path:
            if state not in counts:
                counts[state] = _left_out(frame, state)
        total = sum(counts[state] for state in run.path)
        if total:
            found.append((run.name, total))
    return found


def _left_out(frame: Frame, state: str) -> int:
    folder = frame.folder.state(state)
    try:
        done = states.read_done(folder)
    except Damaged:
        done = None
    if done is not None and done.outcome == "trained" and not done.summary.get("skipped"):
        return 0  # a segment lies within one window: no need to read its updates
    return sum(bool(row.get("skipped")) for row in metrics.read_steps(folder).rows)


def costs(frame: Frame) -> dict[str, Cost]:
    """By arm: planned tokens and FLOPs of one run, from the plan's segments; of a merge those of all runs that it is
    made of, what they share once."""
    users: dict[str, set[str]] = {}
    for run in frame.runs:
        for state in run.path:
            users.setdefault(state, set()).add(run.arm)
    found = {}
    for arm in (*frame.compared, *frame.pooled):
        runs = frame.runs_of(arm.name)
        parts = [run for run in frame.runs if runs and run.name in runs[0].made_of] or runs[:1]
        path = [frame.segments[state] for state in dict.fromkeys(state for run in parts for state in run.path)]
        own = [segment for segment in path if users[segment["id"]] == {arm.name}]
        found[arm.name] = Cost(_tokens(path), _tokens(own), _flops(path), _flops(own))
    return found


def _tokens(segments: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(segment["tokens_to"]) - int(segment["tokens_from"]) for segment in segments)


def _flops(segments: Sequence[Mapping[str, Any]]) -> int | None:
    flops = [segment.get("flops") for segment in segments]
    return None if any(value is None for value in flops) else sum(int(value) for value in flops if value)


def task_settings(frame: Frame) -> list[TaskSettings]:
    """One per task that has a result, in the plan's order."""
    found = []
    for task in frame.tasks:
        results = [r for folder, r in sorted(frame.results.items()) if folder.endswith(f"/{task.key}")]
        if not results:
            continue
        values: dict[str, set[str]] = {}
        for result in results:
            record = {
                **_flat(result.get("settings") or {}),
                **_flat(result.get("versions") or {}),
                "task_hash": str(result.get("task_hash") or ""),
                "max_length": _text(result.get("max_length")),
                "items cut at max_length": _text(result.get("truncated") or 0),
            }
            for name, value in record.items():
                values.setdefault(name, set()).add(value[:12] if HEX.fullmatch(value) else value)
        counts = [m.get("n") or 0 for r in results for m in r["metrics"].values()] or [r["items"] for r in results]
        items = sorted({int(count) for count in counts})
        found.append(
            TaskSettings(
                task=f"{task.suite}: {task.task}" if task.suite else task.task,
                items="–".join(f"{n:,}" for n in dict.fromkeys([items[0], items[-1]])) if items else "0",
                common={name: next(iter(v)) for name, v in values.items() if len(v) == 1 and v != {""}},
                differing={name: tuple(sorted(v)) for name, v in values.items() if len(v) > 1},
            )
        )
    return found


def last_event(frame: Frame) -> str | None:
    """When the newest event of the planned states was written, UTC; None before anything ran."""
    states = {state for run in frame.runs for state in (*run.path, *(point.state for point in run.points))}
    times = [
        float(event["time"])
        for state in sorted(states)
        for event in attempts.read_events(frame.folder.state(state))
        if "time" in event
    ]
    if not times:
        return None
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
