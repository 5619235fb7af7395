"""The appendix: every resolved difference between arms, what each arm was fed, and with what every attempt ran."""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import render
from analysis.audit import computed_with
from analysis.compute import attempts_at
from analysis.frame import END, Frame, Run
from harness.store import states
from harness.store.markers import Damaged

ABSENT = "—"
MADE = ("made of", "coefficients")  # the facts of a merged run
SCHEDULE = re.compile(r"(.+)\.lr\.([^.@]+)@(\d+)")
HASH = re.compile(r"[0-9a-f]{32,}")


@dataclass(frozen=True, slots=True)
class Changed:
    """One field of the resolved configuration: `decay.mixture.math`, its value at the baseline and at the arm."""

    field: str
    baseline: str
    arm: str


def configuration(frame: Frame, run: Run) -> dict[str, str]:
    """Every field of a run's resolved path, by stage; empty for a plan that does not hold them.

    A schedule's pieces are named by the token at which they begin: `decay.lr @ 1,799,680`.
    """
    record = (frame.plan.get("science") or {}).get(run.name) or {}
    fields = {}
    for name, value in (record.get("facts") or {}).items():
        piece = SCHEDULE.fullmatch(name)
        shown = f"{piece[1]}.lr @ {int(piece[3]):,}" if piece else name
        fields[shown] = _value(value)
    return fields


def _value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = ast.literal_eval(value)  # how a schedule's piece is kept in plan.json
        except (ValueError, SyntaxError):
            return str(value)
    if isinstance(value, str) and HASH.fullmatch(value):
        return value[:12]
    return render.flow(value)


def differences(frame: Frame) -> dict[str, list[Changed]]:
    """By arm: every field in which its resolved configuration is not the baseline's, seed for seed; of a merged arm,
    which has none of its own, what it is made of."""
    base = _first(frame, frame.compare.baseline)
    if base is None:
        return {}
    reference = configuration(frame, base)
    if not reference:
        return {}
    found = {}
    for arm in frame.compared:
        run = frame.run_of(arm.name, base.seed)
        if arm.name == frame.compare.baseline or run is None:
            continue
        own = configuration(frame, run)
        found[arm.name] = [
            Changed(name, reference.get(name, ABSENT), own.get(name, ABSENT))
            for name in (MADE if run.made_of else dict.fromkeys((*reference, *own)))
            if reference.get(name) != own.get(name)
        ]
    return found


def baseline_configuration(frame: Frame) -> dict[str, str]:
    """The baseline's whole configuration, with its first seeds."""
    run = _first(frame, frame.compare.baseline)
    return {} if run is None else configuration(frame, run)


def _first(frame: Frame, arm: str) -> Run | None:
    return next(iter(frame.runs_of(arm)), None)


@dataclass(frozen=True, slots=True)
class Served:
    """What one arm was fed of one source along its whole path: means over its finished runs; epochs: the largest."""

    source: str
    tokens: str
    documents: str
    epochs: str


def served(frame: Frame) -> dict[str, list[Served]]:
    """By arm, for the arms with a finished run."""
    found = {}
    for arm in frame.compared:
        records = [record for run in frame.runs_of(arm.name) if (record := _served(frame, run))]
        if records:
            found[arm.name] = [_mean_served(source, records) for source in dict.fromkeys(s for r in records for s in r)]
    return found


def _served(frame: Frame, run: Run) -> Mapping[str, Mapping[str, Any]]:
    point = run.point(END)
    try:
        done = states.read_done(frame.folder.state(point.state)) if point is not None else None
    except Damaged:
        done = None
    return (done.summary.get("served") or {}) if done is not None else {}


def _mean_served(source: str, records: Sequence[Mapping[str, Mapping[str, Any]]]) -> Served:
    own = [record.get(source) or {} for record in records]
    tokens = sum(int(r.get("tokens") or 0) for r in own) / len(own)
    documents = sum(int(r.get("documents") or 0) for r in own) / len(own)
    epochs = max(float(r.get("epochs") or 0.0) for r in own)
    return Served(source, f"{round(tokens):,}", f"{round(documents):,}", f"{epochs:.3g}")


@dataclass(frozen=True)
class Environment:
    """Attempts that ran with the same numerics, code and versions."""

    facts: Mapping[str, str]
    attempts: int
    arms: tuple[str, ...]


def environments(frame: Frame) -> list[Environment]:
    """The distinct environments of all attempts, the most frequent first."""
    counted: dict[tuple[tuple[str, str], ...], int] = {}
    arms: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
    for state, users in _users(frame).items():
        for attempt in attempts_at(frame.folder.state(state), 0):
            key = tuple(sorted(computed_with(attempt.environment).items()))
            counted[key] = counted.get(key, 0) + 1
            arms.setdefault(key, {}).update(dict.fromkeys(run.arm for run in users))
    ordered = sorted(counted, key=lambda key: (-counted[key], key))
    return [Environment(dict(key), counted[key], tuple(arms[key])) for key in ordered]


def attempts_csv(frame: Frame) -> str:
    """Every attempt at training, one line each: which runs it served, how it ended, on what it ran."""
    lines: list[dict[str, object]] = []
    for state, users in _users(frame).items():
        segment = frame.segments[state]
        for attempt in attempts_at(frame.folder.state(state), int(segment["tokens_from"])):
            lines.append(
                {
                    "state": state,
                    "stage": segment["stage"],
                    "attempt": attempt.number,
                    "outcome": attempt.outcome,
                    "tokens_from": attempt.began,
                    "tokens_kept": attempt.kept,
                    "tokens_computed": attempt.tokens,
                    "seconds": None if attempt.seconds is None else round(attempt.seconds, 3),
                    "runs": " ".join(run.name for run in users),
                    **computed_with(attempt.environment),
                }
            )
    fields = list(dict.fromkeys(name for line in lines for name in line)) or ["state"]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _users(frame: Frame) -> dict[str, list[Run]]:
    """The segments that runs need, each with those runs."""
    users: dict[str, list[Run]] = {}
    for run in frame.runs:
        for state in dict.fromkeys((*run.path, *(point.state for point in run.points))):
            if state in frame.segments:
                users.setdefault(state, []).append(run)
    return users


def study_text(frame: Frame) -> str:
    """The study file as it was run; empty where the folder holds none."""
    try:
        return frame.folder.study_yaml.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def overrides(frame: Frame) -> list[str]:
    """The `--set` of the call that the folder answers."""
    return [str(item) for item in (frame.plan.get("asked") or {}).get("set") or ()]
