"""Which rows of a grid or zip are arms: axes that apply only beside certain levels of others, `when` and `exclude`.

A rule that names nothing of its item, or that could be left out without a difference, is refused: it would be accepted
and ignored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.study.axes import Axis, Change
from harness.study.errors import Mistake, nearest
from harness.study.paths import Path
from harness.study.units import kind

Row = tuple[Change, ...]
Rule = Mapping[str, Sequence[Any]]  # what the user calls an axis → its levels


def crossed(axes: Sequence[Axis]) -> Iterator[Row]:
    """Every combination of the axes' levels. Where an axis does not apply, its level is left out, once."""
    rows: Iterator[Row] = itertools.product(*(axis.changes for axis in axes))
    if not any(axis.when for axis in axes):
        return rows
    conditions = {axis.written: _condition(axis, axes) for axis in axes if axis.when is not None}
    kept = (row for row in (_applying(row, conditions) for row in rows) if row)
    return iter({tuple(map(id, row)): row for row in kept}.values())  # levels may be mappings, which have no hash


def _condition(axis: Axis, axes: Sequence[Axis]) -> Rule:
    assert axis.when is not None
    others = {other.written: other.levels for other in axes if other is not axis}
    rule = read_rule(axis.when, others, axis.origin)
    if all(len(rule[name]) == len(others[name]) for name in rule):
        raise Mistake(axis.origin, "names every level, so it holds everywhere; expected fewer, or no `when`", True)
    return rule


def _applying(row: Row, conditions: Mapping[str, Rule]) -> Row:
    """`row` without the axes whose condition fails, nor those that depended on them."""
    while True:
        kept = tuple(
            change for change in row if change.written not in conditions or holds(row, conditions[change.written])
        )
        if len(kept) == len(row):
            return row
        row = kept


def holds(row: Iterable[Change], rule: Rule) -> bool:
    """Whether a row has one of the levels of every axis that the rule names."""
    levels = {change.written: change.level for change in row}
    return all(name in levels and levels[name] in wanted for name, wanted in rule.items())


def read_rule(rule: Any, levels: Mapping[str, Sequence[Any]], origin: Path) -> Rule:
    """`{axis: level or [levels]}`, checked against the axes of its item. Raises Mistake."""
    if not isinstance(rule, Mapping):
        raise Mistake(origin, f"is {kind(rule)}; expected {{path, source or alias: value}}")
    if not rule:
        raise Mistake(origin, "is empty and would match every arm; expected {path or source: value}")
    read: dict[str, Sequence[Any]] = {}
    for name, value in rule.items():
        if name not in levels:
            message = f"`{name}` is not an axis of this item; {nearest(name, levels)}"
            raise Mistake((*origin, name), message, at_key=True)
        whole = value in levels[name]  # a level may itself be a list, such as betas
        wanted = value if isinstance(value, list) and not whole else [value]
        for one in wanted:
            if one not in levels[name]:
                shown = ", ".join(map(str, levels[name]))
                raise Mistake((*origin, name), f"{one} is not among the values of its axis; expected one of {shown}")
        if not wanted:
            raise Mistake((*origin, name), "is an empty list; expected a value of the axis")
        read[name] = wanted
    return read


def chosen(
    rows: Iterable[Row], item: Mapping[str, Any], levels: Mapping[str, Sequence[Any]], origin: Path
) -> list[Row]:
    """The rows that `when` asks for and `exclude` leaves. Raises Mistake for a rule that does nothing, or takes all."""
    left = list(rows)
    if "when" in item:
        rule = read_rule(item["when"], levels, (*origin, "when"))
        kept = [row for row in left if holds(row, rule)]
        if len(kept) == len(left):
            raise Mistake((*origin, "when"), "holds for every arm; expected levels that some arms do not have", True)
        left = kept
    for index, entry in enumerate(item.get("exclude", ())):
        rule = read_rule(entry, levels, (*origin, "exclude", index))
        kept = [row for row in left if not holds(row, rule)]
        if len(kept) == len(left):
            raise Mistake(
                (*origin, "exclude", index), "excludes no arm that is left; expected levels that occur together"
            )
        left = kept
    if not left:
        key = "exclude" if "exclude" in item else "when"
        raise Mistake((*origin, key), "leaves no arm; expected at least one", at_key=True)
    return left
