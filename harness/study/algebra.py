"""The items of `ablate` become arms: each a name and changes, the items a union.

A name is a function of the arm's own changes and aliases: `decay.lr.shape=linear` for a change at a path (without
`stages.`), `math=0.3` for a mixture axis, `len=8192` under an alias, joined with commas in the order of the paths. So
an axis or an item that is added renames nobody, and the order in which axes are written does not matter. Cases are
named by the user.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from harness.study.axes import (
    Axis,
    Change,
    Over,
    check_alias,
    check_apart,
    mixture_axis,
    path_axis,
    read_axis,
    read_change,
    stage_mixture,
    value_text,
)
from harness.study.conditions import chosen, crossed
from harness.study.errors import Mistake, nearest
from harness.study.mixtures import absorb
from harness.study.paths import Path, dotted
from harness.study.schema import ITEM_KINDS
from harness.study.units import kind, parse_share

DEFAULT = "default"  # the arm that is the unmodified study
LONGEST_NAME = 100
CHOOSES = ("exclude", "when")  # rows of a grid or zip


@dataclass(frozen=True, slots=True)
class Candidate:
    """An arm before it is resolved. `changes` are in the order in which they are applied.

    over: whether the arm is left out, or refused (as where nothing was written: None), where it serves a source more
    often than its `max_epochs`.
    """

    name: str
    changes: tuple[Change, ...]
    origin: Path
    over: Over | None = None

    @property
    def drop(self) -> bool:
        return self.over == "drop"

    @property
    def varied(self) -> frozenset[str]:
        """The sources whose shares it declares to vary."""
        return frozenset(name for change in self.changes for name in change.varied)

    @property
    def declared(self) -> dict[str, Any]:
        """Path → value as written."""
        return {change.dotted: change.value for change in self.changes}

    @property
    def levels(self) -> dict[str, Any]:
        """What the user calls it → level: an alias, the sources of a mixture axis, or a path."""
        return {change.written: change.level for change in self.changes}


def expand(document: Mapping[str, Any]) -> list[Candidate]:
    """All arms but `default`, in the order of the items; an arm that two items yield is one arm.

    document: the whole study as plain values. Raises Mistake.
    """
    arms: dict[str, Candidate] = {}
    for index, item in enumerate(document.get("ablate", [])):
        own: set[str] = set()
        for arm in _item(document, item, ("ablate", index)):
            known = arms.setdefault(arm.name, arm)
            if known is not arm and known.declared != arm.declared:
                raise Mistake(
                    arm.origin,
                    f"two arms have the name `{arm.name}` and different changes; expected one name for each, "
                    "which `cases` can give",
                )
            if arm.name in own:
                raise Mistake(arm.origin, f"makes the arm `{arm.name}` a second time; expected every value once")
            own.add(arm.name)
            if known.over != arm.over:
                arms[arm.name] = replace(known, over=_stricter((known.over, arm.over)))
    return list(arms.values())


def _item(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    kinds = [key for key in ITEM_KINDS if key in item]
    if len(kinds) != 1:
        raise Mistake(origin, f"holds {' and '.join(kinds) or 'no axis'}; expected one of {', '.join(ITEM_KINDS)}")
    name = kinds[0]
    for key in CHOOSES:
        if key in item and name not in ("grid", "zip"):
            message = f"belongs to a grid or zip, not to `{name}`; expected it in one"
            raise Mistake((*origin, key), message, at_key=True)
    if "as" in item and name != "zip":
        message = f"names the rows of a zip, not of `{name}`; expected it beside the path of an axis"
        raise Mistake((*origin, "as"), message, at_key=True)
    for place, over in _overs(item, name, origin):
        if over == "drop" and not any("max_epochs" in (source or {}) for source in document["sources"].values()):
            message = "drops nothing: no source has a `max_epochs`; expected one, or no `over`"
            raise Mistake((*place, "over"), message, at_key=True)
    arms = _READERS[name](document, item, origin)
    if "over" in item:  # what stands further inside was meant for less, and wins
        return (arm if arm.over is not None else replace(arm, over=item["over"]) for arm in arms)
    return arms


def _overs(item: Mapping[str, Any], name: str, origin: Path) -> Iterator[tuple[Path, Over | None]]:
    """What an item says of arms that serve a source too often, everywhere it can, with the place of the block."""
    yield origin, item.get("over")
    inner = item[name]
    if name in ("mixture", "add_one", "leave_one_out"):
        yield (*origin, name), inner.get("over")
    elif name in ("grid", "zip"):
        for index, axis in enumerate(inner):
            if isinstance(axis.get("mixture"), Mapping):
                yield (*origin, name, index, "mixture"), axis["mixture"].get("over")


def _stricter(said: Iterable[Over | None]) -> Over | None:
    """The one that refuses, of several that bear on one arm."""
    return min((over for over in said if over is not None), key=("error", "drop").index, default=None)


def _grid(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    axes = _axes(document, item["grid"], (*origin, "grid"))
    rows: Iterable[tuple[Change, ...]] = crossed(axes)
    if any(key in item for key in CHOOSES):
        rows = chosen(rows, item, {axis.written: axis.levels for axis in axes}, origin)
    return _named(rows)


def _zip(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    where = (*origin, "zip")
    axes = _axes(document, item["zip"], where)
    for axis in axes:
        if axis.when is not None:
            raise Mistake(
                axis.origin,
                "is for the axes of a grid, and those of a zip go together; expected no `when`",
                at_key=True,
            )
    lengths = [len(axis.changes) for axis in axes]
    if len(set(lengths)) > 1:
        raise Mistake(where, f"its axes have {', '.join(map(str, lengths))} values; expected equally many")
    rows: Iterable[tuple[Change, ...]] = list(zip(*(axis.changes for axis in axes), strict=True))
    levels = {axis.written: axis.levels for axis in axes}
    if "as" in item:
        rows = _under_one_name(document, rows, item["as"], (*origin, "as"))
        levels = {item["as"]: axes[0].levels} | {axis.written: axis.levels for axis in axes[1:]}
    if any(key in item for key in CHOOSES):
        rows = chosen(rows, item, levels, origin)
    return _named(rows)


def _under_one_name(
    document: Mapping[str, Any], rows: Iterable[tuple[Change, ...]], name: Any, origin: Path
) -> list[tuple[Change, ...]]:
    """Rows of a zip named by the level of their first axis."""
    check_alias(document, name, origin)
    renamed = []
    for first, *others in rows:
        if isinstance(first.level, Mapping):
            message = (
                f"is {kind(first.level)}, which cannot name an arm; expected plain values in the first axis of the zip"
            )
            raise Mistake(first.origin, message)
        named = replace(first, label=f"{name}={value_text(first.level)}", written=name)
        renamed.append((named, *[replace(other, label="") for other in others]))
    return renamed


def _axes(document: Mapping[str, Any], written: Sequence[Mapping[str, Any]], origin: Path) -> list[Axis]:
    axes = [read_axis(document, axis, (*origin, index)) for index, axis in enumerate(written)]
    check_apart([axis.changes[0] for axis in axes])
    names: set[str] = set()
    for axis in axes:
        if axis.written in names:
            raise Mistake(axis.changes[0].origin, f"two axes are called `{axis.written}`; expected a name for each")
        names.add(axis.written)
    return axes


def _named(rows: Iterable[tuple[Change, ...]]) -> Iterator[Candidate]:
    for row in rows:
        by_path = row if len(row) == 1 else sorted(row, key=_by_path)
        applied = tuple(sorted(by_path, key=_applied))
        label = ",".join([change.label for change in by_path if change.label])
        yield Candidate(arm_name(label), applied, row[0].origin, _stricter(change.over for change in row))


def _applied(change: Change) -> tuple[bool, int]:
    """What stages inherit before the stages, and blocks before what is inside them."""
    return change.path[0] == "stages" and len(change.path) > 1, len(change.path)


def _by_path(change: Change) -> tuple[str, ...]:
    return change.path


def _cases(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    for name, changes in item["cases"].items():
        where = (*origin, "cases", name)
        if not changes:
            raise Mistake(where, "changes nothing, so it would be `default` again; expected {path: value}")
        yield Candidate(name, _together(document, changes, where, name), where)


def _together(document: Mapping[str, Any], changes: Mapping[str, Any], where: Path, name: str) -> tuple[Change, ...]:
    """Several changes of one arm, in the order in which they are applied."""
    read = [read_change(document, path, value, (*where, path), name) for path, value in changes.items()]
    check_apart(read)
    return tuple(sorted(read, key=_applied))


def _one_at_a_time(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    where = (*origin, "one_at_a_time")
    axes = [path_axis(document, path, values, (*where, path)) for path, values in item["one_at_a_time"].items()]
    return _named((change,) for axis in axes for change in axis)


def _mixture(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    axis = mixture_axis(document, item["mixture"], (*origin, "mixture"))
    if axis.when is not None:
        raise Mistake(axis.origin, "has no other axis to look at here; expected it in a grid", at_key=True)
    return _named((change,) for change in axis.changes)


def _add_one(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    """Each change alone, or each source at its share in an otherwise unchanged mixture."""
    block, where = item["add_one"], (*origin, "add_one")
    if _form(block, where, ("of", "values", "absorb")) == "changes":
        places = {path: (*where, "changes", path) for path in block["changes"]}
        read = [read_change(document, path, block["changes"][path], place, path) for path, place in places.items()]
        return _named((replace(change, over=block.get("over")),) for change in read)
    values = {name: parse_share(share) for name, share in block["values"].items()}
    return _of_mixture(document, block, values, where, lambda name: f"{name}={value_text(block['values'][name])}")


def _leave_one_out(document: Mapping[str, Any], item: Mapping[str, Any], origin: Path) -> Iterator[Candidate]:
    """All changes but each in turn, after the arm that has them all; or a mixture without each of its sources."""
    block, where = item["leave_one_out"], (*origin, "leave_one_out")
    if _form(block, where, ("of", "absorb")) == "changes":
        return _all_but_one(document, block["changes"], (*where, "changes"), block.get("over"))
    mixture = stage_mixture(document, _stage_of(block["of"], where), (*where, "of"))
    names = [name for name, share in mixture.items() if parse_share(share) and name != block["absorb"]]
    if len(names) + (block["absorb"] in mixture) < 2:
        raise Mistake((*where, "of"), "has one source, which cannot be left out; expected a mixture of several")
    return _of_mixture(document, block, dict.fromkeys(names, Fraction(0)), where, lambda name: f"without-{name}")


def _all_but_one(
    document: Mapping[str, Any], changes: Mapping[str, Any], where: Path, over: Over | None
) -> Iterator[Candidate]:
    every = _together(document, changes, where, "leave_one_out")
    yield replace(next(_named([every])), over=over)
    for left_out in every:
        rest = tuple(change for change in every if change is not left_out)
        yield Candidate(arm_name(f"without-{left_out.label}"), rest, left_out.origin, over)


def _form(block: Mapping[str, Any], where: Path, of_mixture: tuple[str, ...]) -> str:
    """`changes`, or `of` with everything that belongs to it. Raises Mistake."""
    if ("changes" in block) == ("of" in block):
        both = "holds `of` and `changes`" if "of" in block else "says neither `of` nor `changes`"
        raise Mistake(where, f"{both}; expected one of them")
    form = "changes" if "changes" in block else "of"
    for key in of_mixture:
        if form == "changes" and key in block:
            raise Mistake((*where, key), f"belongs to `of`, not to `changes`; expected no `{key}`", at_key=True)
        if form == "of" and key not in block:
            raise Mistake((*where, key), f"is missing beside `of`; expected {', '.join(of_mixture)}")
    return form


def _stage_of(path: str, where: Path) -> str:
    first, _, rest = path.partition(".")
    stage = rest.removesuffix(".mixture")
    if first != "stages" or not rest.endswith(".mixture") or not stage:
        message = f"`{path}` is not the mixture of a stage; expected stages.NAME.mixture"
        raise Mistake((*where, "of"), message)
    return stage


def _of_mixture(
    document: Mapping[str, Any],
    block: Mapping[str, Any],
    values: Mapping[str, Fraction],
    where: Path,
    label: Callable[[str], str],
) -> Iterator[Candidate]:
    """One arm a source: its share is set, `absorb` takes or gives the difference."""
    stage = _stage_of(block["of"], where)
    mixture, path = stage_mixture(document, stage, (*where, "of")), ("stages", stage, "mixture")
    sources = list(document["sources"])
    for name, share in values.items():
        if name not in sources:
            message = f"there is no source `{name}`; {nearest(name, sources)}"
            raise Mistake((*where, "values", name), message, at_key=True)
        place = (*where, "values", name) if "values" in block else (*where, "of")
        shares = absorb(mixture, name, [share], block["absorb"], sources, where, [place])[0]
        level = block["values"][name] if "values" in block else 0
        change = Change(path, dotted(path), shares, label(name), name, level, place, block.get("over"), (name,))
        yield next(_named([(change,)]))


_READERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any], Path], Iterator[Candidate]]] = {
    "grid": _grid,
    "zip": _zip,
    "cases": _cases,
    "one_at_a_time": _one_at_a_time,
    "add_one": _add_one,
    "leave_one_out": _leave_one_out,
    "mixture": _mixture,
}


_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]")


def arm_name(text: str) -> str:
    """A name that is safe as a folder: no `~`, `-` for other characters; a long one is cut and ends in 6 hex digits."""
    name = _UNSAFE.sub("-", text.replace("~", ""))  # `~` says how a count is rounded: no part of a name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name
