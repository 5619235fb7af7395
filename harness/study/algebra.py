"""The items of `ablate` become arms: each a name and changes, the items a union.

A name is a function of the arm's own changes: `decay.lr.shape=linear` for a change at a path (without `stages.`),
`math=0.3` for a mixture axis, joined with commas in the order of the paths. So an axis or an item that is added
renames nobody, and the order in which axes are written does not matter. Cases are named by the user.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.merge import inherit
from harness.study.mixtures import absorb
from harness.study.paths import Path, dotted, find_path
from harness.study.schema import ArmSpec, MixtureAxis
from harness.study.units import kind
from harness.study.validate import validate

DEFAULT = "default"  # the arm that is the unmodified study
LONGEST_NAME = 100
KINDS = ("grid", "zip", "cases", "one_at_a_time", "mixture")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an arm: `value` at `path` (`dotted` as text). `label` is its part of the arm's name.

    written: what the user calls it, a path or the source of a mixture axis; level: the value that the user wrote.
    origin: the path in the document where the value was written.
    """

    path: tuple[str, ...]
    dotted: str
    value: Any
    label: str
    written: str
    level: Any
    origin: Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm before it is resolved. `changes` are in the order in which they are applied."""

    name: str
    changes: tuple[Change, ...]
    origin: Path

    @property
    def declared(self) -> dict[str, Any]:
        """Path → value as written."""
        return {change.dotted: change.value for change in self.changes}

    @property
    def levels(self) -> dict[str, Any]:
        """What the user calls it → level: the source of a mixture axis or a path."""
        return {change.written: change.level for change in self.changes}


def expand(document: Mapping[str, Any]) -> list[Candidate]:
    """All arms but `default`, in the order of the items; an arm that two items yield is one arm.

    document: the whole study as plain values. Raises Mistake.
    """
    arms: dict[str, Candidate] = {}
    for index, item in enumerate(document.get("ablate", [])):
        for arm in _item(document, item, ("ablate", index)):
            known = arms.setdefault(arm.name, arm)
            if known is not arm and known.declared != arm.declared:
                raise Mistake(
                    arm.origin,
                    f"two arms have the name `{arm.name}` and different changes; expected one name for each, "
                    "which `cases` can give",
                )
    return list(arms.values())


def _item(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    kinds = [key for key in KINDS if key in item]
    if len(kinds) != 1:
        raise Mistake(origin, f"holds {' and '.join(kinds) or 'no axis'}; expected one of {', '.join(KINDS)}")
    name = kinds[0]
    if "exclude" in item and name != "grid":
        raise Mistake((*origin, "exclude"), f"belongs to a grid, not to `{name}`; expected it in one", at_key=True)
    where = (*origin, name)
    if name == "cases":
        return _cases(document, item[name], where)
    if name == "one_at_a_time":
        axes = [_path_axis(document, path, values, (*where, path)) for path, values in item[name].items()]
        return _named((change,) for axis in axes for change in axis)
    if name == "mixture":
        return _named((change,) for change in _mixture_axis(document, item[name], where))
    axes = [_axis(document, axis, (*where, index)) for index, axis in enumerate(item[name])]
    _check_apart([axis[0] for axis in axes])
    if name == "zip":
        return _zip(axes, where)
    return _grid(axes, item.get("exclude", []), (*origin, "exclude"))


def _grid(axes: list[list[Change]], excluded: Sequence[Any], origin: Path) -> Iterator[Candidate]:
    rules = [_rule(axes, rule, (*origin, index)) for index, rule in enumerate(excluded)]
    combinations: Iterator[tuple[Change, ...]] = itertools.product(*axes)
    if rules:
        combinations = (row for row in combinations if not any(_matches(row, rule) for rule in rules))
    return _named(combinations)


def _zip(axes: list[list[Change]], origin: Path) -> Iterator[Candidate]:
    lengths = [len(axis) for axis in axes]
    if len(set(lengths)) > 1:
        raise Mistake(origin, f"its axes have {', '.join(map(str, lengths))} values; expected equally many")
    return _named(zip(*axes, strict=True))


def _rule(axes: list[list[Change]], rule: Mapping[str, Any], origin: Path) -> Mapping[str, Any]:
    """An entry of `exclude`, checked: a rule that never matches would be accepted and ignored."""
    levels = {axis[0].written: [change.level for change in axis] for axis in axes}
    if not rule:
        raise Mistake(origin, "is empty and would exclude every arm; expected {path or source: value}")
    for name, value in rule.items():
        if name not in levels:
            raise Mistake(
                (*origin, name), f"`{name}` is not an axis of this grid; {nearest(name, levels)}", at_key=True
            )
        if value not in levels[name]:
            shown = ", ".join(map(str, levels[name]))
            raise Mistake((*origin, name), f"{value} is not among the values of its axis; expected one of {shown}")
    return rule


def _matches(row: Sequence[Change], rule: Mapping[str, Any]) -> bool:
    return all(change.written not in rule or bool(rule[change.written] == change.level) for change in row)


def _named(rows: Iterable[tuple[Change, ...]]) -> Iterator[Candidate]:
    for row in rows:
        by_path = row if len(row) == 1 else sorted(row, key=_by_path)
        applied = tuple(sorted(by_path, key=_applied))
        yield Candidate(arm_name(",".join([change.label for change in by_path])), applied, row[0].origin)


def _applied(change: Change) -> tuple[bool, int]:
    """What stages inherit before the stages, and blocks before what is inside them."""
    return change.path[0] == "stages" and len(change.path) > 1, len(change.path)


def _by_path(change: Change) -> tuple[str, ...]:
    return change.path


def _cases(document: Mapping[str, Any], cases: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    for name, changes in cases.items():
        where = (*origin, name)
        if not changes:
            raise Mistake(where, "changes nothing, so it would be `default` again; expected {path: value}")
        read = [_change(document, path, value, (*where, path), name) for path, value in changes.items()]
        _check_apart(read)
        yield Candidate(name, tuple(sorted(read, key=_applied)), where)


def _axis(document: Mapping[str, Any], axis: Mapping[str, Any], origin: Path) -> list[Change]:
    if len(axis) != 1:
        raise Mistake(origin, f"holds {len(axis)} entries; expected one axis, path: [values] or mixture: {{...}}")
    path, values = next(iter(axis.items()))
    if path == "mixture":
        return _mixture_axis(document, values, (*origin, path))
    return _path_axis(document, path, values, (*origin, path))


def _path_axis(document: Mapping[str, Any], path: str, values: Any, origin: Path) -> list[Change]:
    if not isinstance(values, list) or not values:
        found = "an empty list" if isinstance(values, list) else kind(values)
        raise Mistake(origin, f"is {found}; expected a list of values")
    return [_change(document, path, value, (*origin, index)) for index, value in enumerate(values)]


def _change(document: Mapping[str, Any], written: str, value: Any, origin: Path, case: str = "") -> Change:
    """A change at a path, checked by itself: the path is known and the value is one that may stand there."""
    at_path = origin if case else origin[:-1]
    path = _arm_path(document, written, at_path)
    label = ",".join(_labels(path, value))
    nested = value
    for key in reversed(path):
        nested = {key: nested}
    try:
        validate(ArmSpec, nested)
        _check_stages(document, nested)
    except Mistake as mistake:
        inner = mistake.path[len(path) :]
        arm = f"arm `{case}`" if case else f"arms with `{label}`"
        raise Mistake((*origin, *inner), f"in {arm}, {mistake.message}", mistake.at_key and bool(inner)) from None
    return Change(path, dotted(path), value, label, dotted(path), value, origin)


def _arm_path(document: Mapping[str, Any], written: str, origin: Path) -> tuple[str, ...]:
    first = written.partition(".")[0]
    if first not in ArmSpec.names():
        said = f"an arm cannot change `{first}`, which is the same for every arm"
        raise Mistake(origin, f"{said}; {nearest(first, ArmSpec.names())}", at_key=True)
    try:
        return find_path(written, ArmSpec, document)
    except Mistake as mistake:
        raise Mistake(origin, mistake.message, at_key=True) from None


def _check_stages(document: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    for name in nested.get("stages", {}):
        if name not in document["stages"]:
            raise Mistake(("stages", name), f"there is no stage `{name}`; {nearest(name, document['stages'])}")


def _check_apart(changes: Sequence[Change]) -> None:
    """Two changes of one arm at the same path, or two that set one mixture, would hide each other."""
    seen: dict[tuple[str, ...], Change] = {}
    for change in changes:
        if change.path in seen:
            raise Mistake(change.origin, f"`{change.dotted}` is changed twice in one arm; expected it once")
        seen[change.path] = change
    for change in changes:
        if change.written == change.dotted:
            continue  # not a mixture axis
        for other in changes:
            own = other.path[: len(change.path)] == change.path or change.path[: len(other.path)] == other.path
            if other is not change and (own or other.path == ("train",) or other.path[:2] == ("train", "mixture")):
                raise Mistake(change.origin, f"`{other.written}` changes the same mixture; expected one of the two")


def _mixture_axis(document: Mapping[str, Any], values: Any, origin: Path) -> list[Change]:
    if not isinstance(values, Mapping):
        raise Mistake(origin, f"is {kind(values)}; expected {{stage, vary, values, absorb}}")
    try:
        axis = validate(MixtureAxis, values)
    except Mistake as mistake:
        raise Mistake((*origin, *mistake.path), mistake.message, mistake.at_key) from None
    if axis.stage not in document["stages"]:
        raise Mistake(
            (*origin, "stage"), f"there is no stage `{axis.stage}`; {nearest(axis.stage, document['stages'])}"
        )
    mixture = inherit(document.get("train", {}), document["stages"][axis.stage]).get("mixture")
    if mixture is None:
        raise Mistake((*origin, "stage"), f"the stage `{axis.stage}` has no mixture; expected one that can be varied")
    path = ("stages", axis.stage, "mixture")
    return [
        Change(path, dotted(path), mixed, f"{axis.vary}={_value(level)}", axis.vary, level, (*origin, "values", index))
        for index, (level, mixed) in enumerate(
            zip(values["values"], absorb(mixture, axis, list(document["sources"]), origin), strict=True)
        )
    ]


def _labels(path: tuple[str, ...], value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [label for key, inner in value.items() for label in _labels((*path, key), inner)]
    shown = path[1:] if path[0] == "stages" else path
    return [f"{'.'.join(shown)}={_value(value)}"]


def _value(value: Any) -> str:
    """A value in a name: as written, a float without a trailing `.0`, a list joined with `+`."""
    if isinstance(value, list):
        return "+".join(map(_value, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]")


def arm_name(text: str) -> str:
    """A name that is safe as a folder: no `~`, `-` for other characters; a long one is cut and ends in 6 hex digits."""
    name = _UNSAFE.sub("-", text.replace("~", ""))  # `~` says how a count is rounded: no part of a name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name
