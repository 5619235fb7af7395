"""Axes of an ablation: a path with its values, or the share of a source (or a group of them) with its levels.

Every value of an axis is a `Change`, checked by itself before it is crossed with anything: the path is one that an arm
may change, the value one that may stand there, and a mixture's shares sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.study.checks import check_name
from harness.study.errors import Mistake, nearest
from harness.study.includes import inherit
from harness.study.mixtures import absorb, members
from harness.study.paths import Path, dotted, find_path, of_stage
from harness.study.schema import ArmSpec, MixtureAxis
from harness.study.units import kind
from harness.study.validate import validate

Over = Literal["error", "drop"]
OPTIONS = ("as", "when")  # what may stand beside the path of an axis


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an arm: `value` at `path` (`dotted` as text). `label` is its part of the arm's name.

    written: what the user calls it: an alias, a path or the sources of a mixture axis; level: the value that the user
    wrote. origin: the path in the document where the value was written. over: what was written of an arm that repeats a
    source more often than its `max_epochs`, None where nothing was. varied: the sources of a mixture axis.
    """

    path: tuple[str, ...]
    dotted: str
    value: Any
    label: str
    written: str
    level: Any
    origin: Path
    over: Over | None = None
    varied: tuple[str, ...] = ()

    @property
    def of_mixture(self) -> bool:
        """Whether the level is a share and `value` the mixture that follows from it."""
        return self.path[-1] == "mixture" and self.level is not self.value


@dataclass(frozen=True, slots=True)
class Axis:
    """The changes of one axis, and where it applies: name of another axis → levels there (None: everywhere)."""

    changes: list[Change]
    when: Mapping[str, Any] | None
    origin: Path

    @property
    def written(self) -> str:
        return self.changes[0].written

    @property
    def levels(self) -> list[Any]:
        return [change.level for change in self.changes]


def read_axis(document: Mapping[str, Any], axis: Mapping[str, Any], origin: Path) -> Axis:
    """`path: [values]` with `as` and `when` beside it, or `mixture: {...}` with them inside. Raises Mistake."""
    named = [key for key in axis if key not in OPTIONS]
    if len(named) != 1:
        raise Mistake(origin, f"holds {len(named)} axes; expected one, path: [values] or mixture: {{...}}")
    path = named[0]
    if path != "mixture":
        read = Axis(path_axis(document, path, axis[path], (*origin, path)), axis.get("when"), (*origin, "when"))
        return alias(document, read, axis.get("as"), (*origin, "as"))
    if len(axis) > 1:
        key = next(key for key in OPTIONS if key in axis)
        raise Mistake((*origin, key), "belongs into the mixture axis; expected mixture: {..., " + key + ": ...}", True)
    return mixture_axis(document, axis[path], (*origin, path))


def alias(document: Mapping[str, Any], axis: Axis, name: Any, origin: Path) -> Axis:
    """`axis` under another name (None: its own): in arms' names, `exclude`, `when` and the levels of an arm."""
    if name is None:
        return axis
    check_alias(document, name, origin)
    changes = [
        replace(change, label=f"{name}={value_text(change.level)}", written=name)
        if isinstance(change.level, str | int | float | bool)
        else _refuse_alias(name, change)
        for change in axis.changes
    ]
    return replace(axis, changes=changes)


def _refuse_alias(name: str, change: Change) -> Change:
    raise Mistake(
        change.origin,
        f"is {kind(change.level)}, which cannot stand in a name; expected plain values under `as: {name}`",
    )


def check_alias(document: Mapping[str, Any], name: Any, origin: Path) -> None:
    """An alias is a plain name that means nothing else. Raises Mistake."""
    if not isinstance(name, str):
        raise Mistake(origin, f"is {kind(name)}; expected a name such as len")
    check_name("alias", name, origin)
    if name in document.get("sources", {}):
        raise Mistake(origin, f"`{name}` is a source, whose shares a mixture axis varies; expected another name")


def path_axis(document: Mapping[str, Any], path: str, values: Any, origin: Path) -> list[Change]:
    """The changes of `path: [values]`. Raises Mistake."""
    if not isinstance(values, list) or not values:
        found = "an empty list" if isinstance(values, list) else kind(values)
        raise Mistake(origin, f"is {found}; expected a list of values")
    return [read_change(document, path, value, (*origin, index)) for index, value in enumerate(values)]


def read_change(document: Mapping[str, Any], written: str, value: Any, origin: Path, case: str = "") -> Change:
    """A change at a path, checked by itself. case: the arm that the user named, where `origin` is the path itself."""
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
    if meant := of_stage(written, document):
        raise Mistake(origin, meant, at_key=True)
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


def check_apart(changes: Sequence[Change]) -> None:
    """Two changes of one arm at the same path, or two that set one mixture, would hide each other. Raises Mistake."""
    seen: dict[tuple[str, ...], Change] = {}
    for change in changes:
        if change.path in seen:
            raise Mistake(change.origin, f"`{change.dotted}` is changed twice in one arm; expected it once")
        seen[change.path] = change
    for change in changes:
        if not change.of_mixture:
            continue
        for other in changes:
            own = other.path[: len(change.path)] == change.path or change.path[: len(other.path)] == other.path
            if other is not change and (own or other.path == ("train",) or other.path[:2] == ("train", "mixture")):
                raise Mistake(change.origin, f"`{other.written}` changes the same mixture; expected one of the two")


def mixture_axis(document: Mapping[str, Any], values: Any, origin: Path) -> Axis:
    """The changes of `mixture: {stage, vary, values, absorb}`: whole mixtures, named by the share. Raises Mistake."""
    if not isinstance(values, Mapping):
        raise Mistake(origin, f"is {kind(values)}; expected {{stage, vary, values, absorb}}")
    try:
        axis = validate(MixtureAxis, values)
    except Mistake as mistake:
        raise Mistake((*origin, *mistake.path), mistake.message, mistake.at_key) from None
    mixture = stage_mixture(document, axis.stage, (*origin, "stage"))
    path = ("stages", axis.stage, "mixture")
    sources = tuple(members(axis.vary))
    varied, over = "+".join(sources), values.get("over")
    places: list[Path] = [(*origin, "values", index) for index in range(len(axis.values))]
    mixed = absorb(mixture, axis.vary, axis.values, axis.absorb, list(document["sources"]), origin, places)
    changes = [
        Change(path, dotted(path), shares, f"{varied}={value_text(level)}", varied, level, place, over, sources)
        for level, shares, place in zip(values["values"], mixed, places, strict=True)
    ]
    return alias(document, Axis(changes, axis.when, (*origin, "when")), axis.as_, (*origin, "as"))


def stage_mixture(document: Mapping[str, Any], stage: str, origin: Path) -> Mapping[str, Any]:
    """The mixture of a stage, inherited or its own. Raises Mistake where there is none."""
    if stage not in document["stages"]:
        raise Mistake(origin, f"there is no stage `{stage}`; {nearest(stage, document['stages'])}")
    mixture = inherit(document.get("train", {}), document["stages"][stage]).get("mixture")
    if not isinstance(mixture, Mapping):
        raise Mistake(origin, f"the stage `{stage}` has no mixture; expected one that can be varied")
    return mixture


def _labels(path: tuple[str, ...], value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [label for key, inner in value.items() for label in _labels((*path, str(key)), inner)]
    shown = path[1:] if path[0] == "stages" else path
    return [f"{'.'.join(shown)}={value_text(value)}"]


def value_text(value: Any) -> str:
    """A value in a name: as written, a float without a trailing `.0`, a list joined with `+`."""
    if isinstance(value, list):
        return "+".join(map(value_text, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
