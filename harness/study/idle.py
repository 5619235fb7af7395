"""What a study writes and nothing takes: a rate that no schedule uses, a value of `train` that every stage has itself.

Accepted, it would be ignored, and an arm that varies it would be the arm without it under another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.study.algebra import Candidate
from harness.study.axes import Change
from harness.study.document import COMMAND_LINE, Document
from harness.study.errors import Mistake
from harness.study.includes import change, inherit
from harness.study.paths import Path, dotted, has, value_at
from harness.study.schedules import Declared
from harness.study.treatment import OPEN_SHAPES, LearningRate, Stage, Treatment
from harness.study.units import Rate

RATE = ("optimizer", "lr")


def check_rate(name: str, own: Mapping[str, Any], lr: Declared | None, peak: float, earlier: Sequence[Stage]) -> None:
    """A stage that is not the first begins where the one before ended: a rate of its own needs a schedule to name it.

    own: the stage's block as written. lr: its schedule. peak: its `optimizer.lr`. earlier: the stages before it.
    Raises Mistake.
    """
    if not earlier or lr is None or "lr" not in (own.get("optimizer") or {}):
        return
    before = earlier[-1]
    same = (before.optimizer.lr, before.lr.end if before.lr is not None else None)
    if peak in same or _in_times(lr):
        return
    start = "begins at the rate where" if lr.start is None else "names its rates, whatever is left from where"
    message = f"is taken by nothing: the schedule of `{name}` {start} `{before.name}` ended, and has no rate in `x`"
    raise Mistake(("stages", name, *RATE), f"{message}; expected `lr.from: 1x` beside it, or no rate here")


def _in_times(lr: Declared) -> bool:
    """Whether a schedule names a rate as a multiple of `optimizer.lr`; 0x is 0 of whatever it is."""
    rates = (lr.start, lr.end, lr.warmup_from)
    return any(isinstance(rate, Rate) and rate.times and rate.value for rate in rates)


def check_inherited(document: Document, candidates: Iterable[Candidate]) -> None:
    """What an arm, or `--set`, says of `train` must reach a stage. Raises Mistake."""
    values = document.values
    for path in _set_on_the_command_line(document):
        if not _reaches(values, _without(values, path)):
            raise Mistake(path, _taken_by_none(path))
    known: set[int] = set()
    for candidate in candidates:
        for one in candidate.changes:
            if one.path[0] == "train" and id(one) not in known:
                known.add(id(one))
                _check_change(values, one, candidate.name)


def _check_change(values: Mapping[str, Any], one: Change, arm: str) -> None:
    changed = change(values, one.path, one.value)
    if changed["train"] != values.get("train", {}) and not _reaches(values, changed):
        raise Mistake(one.origin, f"in arm `{arm}`, `{one.dotted}` {_taken_by_none(one.path)}", at_key=True)


def _taken_by_none(path: Path) -> str:
    key = dotted(path[1:])
    where = f"stages.NAME.{key}" if key else "the stages"
    return f"is inherited by no stage: every one has what it says itself; expected it at {where}"


def _reaches(values: Mapping[str, Any], changed: Mapping[str, Any]) -> bool:
    """Whether any stage is another with the `train` of `changed`."""
    before, after = values.get("train", {}), changed.get("train", {})
    return any(inherit(before, stage or {}) != inherit(after, stage or {}) for stage in values["stages"].values())


def _set_on_the_command_line(document: Document) -> list[Path]:
    """The paths of the single values of `train` that `--set` wrote and that hold."""
    found = []
    for path, marks in document.marks.items():
        plain = path[:1] == ("train",) and not any(isinstance(key, int) for key in path)
        holds = plain and marks.value.source.startswith(COMMAND_LINE) and has(document.values, path)
        if holds and not isinstance(value_at(document.values, path), Mapping):
            found.append(path)
    return found


def _without(values: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """`values` without the one at `path`."""
    key, *rest = path
    kept = dict(values)
    if rest:
        kept[str(key)] = _without(values[str(key)], tuple(rest))
    else:
        del kept[str(key)]
    return kept


def check_used(candidate: Candidate, own: Treatment, default: Treatment) -> None:
    """An arm that differs from `default` in nothing but a rate, or a count of tokens, that none of its schedules uses.

    Raises Mistake at the path of that value.
    """
    if not any(map(_may_be_a_rate, candidate.changes)):
        return
    schedules = [own.lr] if own.lr is not None else [stage.lr for stage in own.stages if stage.lr is not None]
    used = {
        ("base", "lr"): (own.base.lr != default.base.lr, any(map(_from_base, schedules))),
        ("base", "tokens_seen"): (
            own.base.tokens_seen != default.base.tokens_seen,
            any(lr.shape in OPEN_SHAPES for lr in schedules),
        ),
        ("stages", own.stages[0].name, *RATE): (_peaks(own) != _peaks(default), schedules[0].start is None),
    }
    differing = [path for path, (differs, _) in used.items() if differs]
    if differing and not any(used[path][1] for path in differing) and _as(own, default) == default:
        what = "no schedule of the arm begins with it or names a rate in `x`"
        raise Mistake(differing[0], f"changes nothing: {what}; expected it where a schedule uses it")


def _may_be_a_rate(one: Change) -> bool:
    """A quick look, for studies of ten thousand arms."""
    return one.path[0] == "base" or one.path[-2:] == RATE or isinstance(one.value, Mapping)


def _as(own: Treatment, other: Treatment) -> Treatment:
    """`own` with the rates and the tokens of `other` that schedules may use."""
    base = replace(own.base, lr=other.base.lr, tokens_seen=other.base.tokens_seen)
    if len(own.stages) != len(other.stages):
        return own
    pairs = zip(own.stages, other.stages, strict=True)
    stages = tuple(replace(a, optimizer=replace(a.optimizer, lr=b.optimizer.lr)) for a, b in pairs)
    return replace(own, base=base, stages=stages)


def _from_base(lr: LearningRate) -> bool:
    return "base" in (lr.start, lr.warmup_from)


def _peaks(treatment: Treatment) -> Sequence[float]:
    return [stage.optimizer.lr for stage in treatment.stages]
