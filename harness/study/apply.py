"""The changes of an arm, applied to a study. Arms that change a stage alike share the changed stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.study.axes import Change
from harness.study.includes import change


class Applier:
    """Applies changes to one document. Both it and the changes must stay alive: what is kept is found by identity."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._outer: dict[tuple[int, ...], Mapping[str, Any]] = {}
        self._stages: dict[tuple[int, ...], Any] = {}
        self._fields: dict[tuple[int, ...], Any] = {}
        self._alive: list[Any] = []

    def apply(self, changes: Sequence[Change]) -> Mapping[str, Any]:
        """The document with `changes`, which stand in the order of `Candidate.changes`."""
        outer: list[Change] = []
        inner: dict[str, list[Change]] = {}
        for one in changes:
            if one.path[0] == "stages" and len(one.path) > 1:
                inner.setdefault(one.path[1], []).append(one)
            else:
                outer.append(one)
        document = self._with_outer(outer) if outer else self._document
        if not inner:
            return document
        stages = {**document["stages"]}
        for name, changed in inner.items():
            stages[name] = self._with_inner(document, name, changed)
        return {**document, "stages": stages}

    def _with_outer(self, changes: Sequence[Change]) -> Mapping[str, Any]:
        key = tuple(map(id, changes))
        if (known := self._outer.get(key)) is None:
            known = self._document
            for one in changes:
                known = change(known, one.path, one.value)
            self._outer[key] = known
        return known

    def _with_inner(self, document: Mapping[str, Any], name: str, changes: Sequence[Change]) -> Any:
        key = (id(document), *map(id, changes))
        if (known := self._stages.get(key)) is None:
            stage = document["stages"][name]
            fields: dict[str, list[Change]] = {}
            for one in changes:
                if len(one.path) > 2:
                    fields.setdefault(one.path[2], []).append(one)
                else:
                    stage = _changed(document, name, stage, [one])
            known = {**stage}
            for field, of_field in fields.items():
                known[field] = self._field(document, name, stage, field, of_field)
            self._stages[key] = known
        return known

    def _field(self, document: Mapping[str, Any], name: str, stage: Any, field: str, changes: Sequence[Change]) -> Any:
        """One field of a stage after the changes inside it, which read nothing but that field and what it inherits."""
        key = (id(document), id(stage), *map(id, changes))
        if key not in self._fields:
            self._fields[key] = _changed(document, name, stage, changes)[field]
            self._alive.append(stage)
        return self._fields[key]


def _changed(document: Mapping[str, Any], name: str, stage: Any, changes: Sequence[Change]) -> Any:
    around: Mapping[str, Any] = {"train": document.get("train", {}), "stages": {name: stage}}
    for one in changes:
        around = change(around, one.path, one.value)
    return around["stages"][name]
