"""What the study cost, as far as its records say: floating-point operations, tokens, hours per device, lost work.

Everything measured comes from the attempts' own records: their events, their metrics and how they ended. What was not
measured is said not to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import render
from analysis.frame import Frame
from harness.store import attempts, metrics
from harness.store.layout import StateFolder

FORMULA = (
    "6 N + 6 L d T a token, forward and backward: N parameters of matrix products, L layers of attention width d, "
    "context T, causal (PaLM, 2204.02311, appendix B, without the masked half)"
)
KEEPING = ("checkpoint", "finished", "diverged", "stopped")  # events after which work is not lost
ENDS = {"finished": "trained", "diverged": "diverged", "failed": "failed", "stopped": "stopped"}
NO_END = "without a recorded end"  # killed, or still at work
UNKNOWN_DEVICE = "a device that was not recorded"


@dataclass(slots=True)
class Device:
    """One class of device: what was spent on it. hours: wall-clock of the attempts times their processes."""

    name: str
    hours: float = 0.0
    attempts: int = 0
    tokens: int = 0


@dataclass
class Spent:
    """Training as it happened. tokens: of all attempts; lost: those that were computed again or never reached a
    checkpoint; untimed: attempts that left no two times; outcomes: how attempts ended."""

    devices: dict[str, Device] = field(default_factory=dict)
    tokens: int = 0
    lost: int = 0
    untimed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Evaluations that are there: how many, their seconds by device, and how many did not record them."""

    count: int
    seconds: Mapping[str, float]
    untimed: int


def spent(frame: Frame) -> Spent:
    """Read every attempt at the planned states, once each."""
    found = Spent()
    states = dict.fromkeys(state for run in frame.runs for state in (*run.path, *(p.state for p in run.points)))
    for state in states:
        segment = frame.segments.get(state)
        if segment is not None:  # the base is loaded, not trained
            _add(found, frame.folder.state(state), int(segment["tokens_from"]))
    return found


def _add(found: Spent, state: StateFolder, start: int) -> None:
    reached = start
    for attempt in attempts_at(state, start):
        device = found.devices.setdefault(attempt.device, Device(attempt.device))
        device.attempts += 1
        device.tokens += attempt.tokens
        found.tokens += attempt.tokens
        found.outcomes[attempt.outcome] += 1
        found.lost += max(0, attempt.tokens - max(0, attempt.kept - reached))
        reached = max(reached, attempt.kept)
        if attempt.seconds is None:
            found.untimed += 1
        else:
            device.hours += attempt.seconds * attempt.world / 3600.0


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt. began, kept: path tokens at its start, and of the last state that it left (a checkpoint or its
    end); tokens: computed by it, kept or not; seconds: None when it left no two times."""

    number: int
    outcome: str
    device: str
    world: int
    began: int
    kept: int
    tokens: int
    seconds: float | None
    environment: Mapping[str, Any]


def attempts_at(state: StateFolder, start: int) -> list[AttemptRecord]:
    """The attempts at a segment that begins at `start`, in order."""
    events: dict[int, list[dict[str, Any]]] = {}
    for event in attempts.read_events(state):
        events.setdefault(int(event.get("attempt", 0)), []).append(event)
    return [_attempt(state, number, events.get(number, []), start) for number in state.attempt_numbers()]


def _attempt(state: StateFolder, number: int, events: Sequence[Mapping[str, Any]], start: int) -> AttemptRecord:
    environment = attempts.read_env(state, number) or {}
    last = metrics.last_row(state, [number]) or {}
    ended = attempts.read_exit(state, number) or {}
    starts = [int(e["tokens"]) for e in events if e.get("kind") == "attempt_started" and "tokens" in e]
    began = starts[0] if starts else start
    kept = [int(e["tokens"]) for e in events if e.get("kind") in KEEPING and "tokens" in e]
    return AttemptRecord(
        number=number,
        outcome=_outcome(events, ended),
        device=_device(environment),
        world=int((environment.get("numerics") or {}).get("world") or 1),
        began=began,
        kept=max(kept, default=began),
        tokens=max(0, int(last.get("tokens") or began) - began),
        seconds=_seconds(events, last, ended),
        environment={**environment, **_ran(events)},
    )


def _ran(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the first forward of an attempt was seen to run; nothing for attempts that did not look yet."""
    said = next((event for event in events if event.get("kind") == "kernels"), None)
    if said is None:
        return {}
    facts = {"attention": said["attention"]}
    if said.get("why"):
        facts["kernels"] = said["why"]
    if said.get("sdpa"):
        facts["sdpa"] = ", ".join(said["sdpa"])
    if said.get("launched"):
        facts["launched"] = ", ".join(f"{name} {count}x" for name, count in sorted(said["launched"].items()))
    return {"ran": facts}


def _seconds(events: Sequence[Mapping[str, Any]], last: Mapping[str, Any], ended: Mapping[str, Any]) -> float | None:
    """From an attempt's first event to its recorded end or the last sign of it; None when there are no two times."""
    times = [float(event["time"]) for event in events if "time" in event]
    if not times:
        return None
    signs = [float(sign["time"]) for sign in (ended, last) if "time" in sign][:1]
    seconds = max([*times[1:], *signs], default=times[0]) - times[0]
    return seconds if seconds > 0.0 else None


def _outcome(events: Sequence[Mapping[str, Any]], ended: Mapping[str, Any]) -> str:
    """How an attempt ended: as it recorded, else as its last event says."""
    last = str(events[-1].get("kind")) if events else ""
    return str(ended.get("outcome") or ENDS.get(last) or NO_END)


def _device(environment: Mapping[str, Any]) -> str:
    numerics = environment.get("numerics") or {}
    device = str(numerics.get("device") or "")
    if not device:
        return UNKNOWN_DEVICE
    name = str(numerics.get("processor") or "")
    if device == "cpu":
        threads = int(numerics.get("threads") or 1)
        return f"{name or 'CPU'}, {threads} thread{'s' if threads != 1 else ''}"
    return name or device


def evaluated(frame: Frame) -> Evaluated:
    """Time of the evaluations that the report rests on."""
    seconds: dict[str, float] = {}
    untimed = 0
    for _, result in sorted(frame.results.items()):
        if result.get("seconds") is None:
            untimed += 1
            continue
        device = _device(result)
        seconds[device] = seconds.get(device, 0.0) + float(result["seconds"])
    return Evaluated(len(frame.results), seconds, untimed)


def statement(frame: Frame) -> list[str]:
    """Sentences for a paper's compute paragraph; only what the records say."""
    return [*_planned(frame), *_measured(frame), *_evaluations(frame)]


def _planned(frame: Frame) -> list[str]:
    totals = frame.plan.get("totals") or {}
    tokens, unshared, flops = (totals.get(name) for name in ("tokens", "tokens_unshared", "flops"))
    sentences = []
    if tokens is not None and unshared is not None:
        runs, text = len(frame.runs), f"{int(tokens):,} tokens"
        saved = f" instead of {int(unshared):,}" if unshared != tokens else ""
        why = ", because runs share what they have in common" if saved else ""
        sentences.append(f"The study trains {text} for {runs} run{'s' if runs != 1 else ''}{saved}{why}.")
    if flops is not None:
        counted = f"{FORMULA}; evaluation is not counted"
        sentences.append(f"That is {render.flops_text(round(flops))} floating-point operations ({counted}).")
    else:
        sentences.append("Its floating-point operations are not known, because the model's shape was not when planned.")
    hours = totals.get("gpu_hours")
    if hours is not None:
        basis = totals.get("gpu_hours_basis") or "an assumption"
        sentences.append(f"Planned before the run: {_hours(hours)} of one GPU ({basis}); this is no measurement.")
    return sentences


def _measured(frame: Frame) -> list[str]:
    found = spent(frame)
    if not found.devices:
        return ["No attempt at training has been recorded."]
    devices = sorted(found.devices.values(), key=lambda device: (-device.hours, device.name))
    shown = "; ".join(
        f"{_hours(device.hours)} on {device.name} ({_count(device.attempts, 'attempt')})" for device in devices
    )
    sentences = [f"Measured training time, start-up and checkpoints included: {shown}."]
    if found.untimed:
        sentences.append(f"Without a measured time: {_count(found.untimed, 'attempt')}, not in it.")
    unfinished = found.outcomes.total() - found.outcomes["trained"] - found.outcomes["diverged"]
    lost = f"{found.lost:,} tokens of work were lost and done again" if found.lost else "no work was lost"
    ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
    if unfinished or found.lost:
        sentences.append(f"Attempts: {ended}; {lost}, of {found.tokens:,} tokens computed in all.")
    else:
        sentences.append(f"Attempts: {ended}; {lost}.")
    return sentences


def _evaluations(frame: Frame) -> list[str]:
    done = evaluated(frame)
    if not done.count:
        return ["Nothing has been evaluated."]
    shown = "; ".join(f"{_hours(s / 3600.0)} on {device}" for device, s in sorted(done.seconds.items()))
    measured = done.count - done.untimed
    if not measured:
        return [f"Evaluation: {_count(done.count, 'result')}; their time was not recorded."]
    rest = f" ({_count(done.untimed, 'result')} without a time)" if done.untimed else ""
    return [f"Evaluation: {shown} for {_count(measured, 'result')}{rest}, as each of them records it."]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _hours(hours: float) -> str:
    """Hours with three digits; minutes and seconds where hours would be a fraction."""
    seconds = hours * 3600.0
    if seconds < 60.0:
        return "less than a second" if seconds < 1.0 else f"{seconds:.3g} s"
    if hours < 1.0:
        return f"{seconds / 60.0:.3g} min"
    return f"{hours:.3g} h" if hours < 100.0 else f"{hours:,.0f} h"
