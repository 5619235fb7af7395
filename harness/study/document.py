"""A study file as plain values, with the place of every key and value: YAML 1.2, include, `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from harness.study.blocks import Block
from harness.study.errors import Mistake, StudyError, nearest
from harness.study.includes import change, merge
from harness.study.paths import Path, dotted, find_path, has
from harness.study.reader import Marks, Place, parse
from harness.study.units import kind

COMMAND_LINE = "--set "  # how the place of a value begins that was written there


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values and the places where they were written. Values are never changed in place."""

    values: Mapping[str, Any]
    marks: Mapping[Path, Marks]

    def over(self, older: Document) -> Document:
        """This document merged over an older one."""
        _check_stage_order(older, self)
        return Document(merge(older.values, self.values), {**older.marks, **self.marks})

    def locate(self, path: Path, at_key: bool = False) -> tuple[Place, Path]:
        """The place of `path`, and the path at which it was written.

        What a stage inherits lies under `train`; what is missing is placed at the innermost block that is there.
        """
        inherited: Path = ("train", *path[2:]) if path[:1] == ("stages",) and len(path) > 2 else path
        for written in (path, inherited):
            if written in self.marks and has(self.values, written):
                return self._place(written, at_key), written
        own, above = self._innermost(path), self._innermost(inherited)
        if len(inherited) - len(above) < len(path) - len(own):
            return self._place(above, False), inherited
        return self._place(own, False), path

    def _innermost(self, path: Path) -> Path:
        """The longest part of `path` that was written somewhere."""
        while path and not (path in self.marks and has(self.values, path)):
            path = path[:-1]
        return path

    def _place(self, path: Path, at_key: bool) -> Place:
        marks = self.marks[path]
        if not isinstance(_walk(self.values, path), Mapping | list):
            return marks.key if at_key else marks.value
        if not at_key:  # what `--set` changed inside a block is why the block is looked at, as far as anybody knows
            inside = (mark.value for at, mark in self.marks.items() if at[: len(path)] == path and not mark.value.line)
            return next(inside, marks.key)
        return marks.key

    def error(self, mistake: Mistake) -> StudyError:
        """`mistake` with its place."""
        place, path = self.locate(mistake.path, mistake.at_key)
        return StudyError(str(place), f"{dotted(path)}: {mistake.message}" if path else mistake.message)


def load(path: File, overrides: Sequence[str], root: type[Block]) -> tuple[Document, str]:
    """The study at `path` with its includes and then `--set` overrides, and its text as written."""
    text = read_text(path)
    document = _with_includes(path, text, ())
    for override in overrides:
        document = _with_override(document, override, root)
    return document, text


def read_text(path: File, place: str | None = None) -> str:
    """The text of a file; raises StudyError at `place` (the file itself by default)."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise StudyError(place or str(path), f"there is no file {path}; {nearest(path.name, beside)}") from None
    except IsADirectoryError:
        inside = nearest("", (str(entry) for entry in path.glob("*.yaml")))
        raise StudyError(place or str(path), f"{path} is a folder; expected a YAML file. {inside}") from None
    except UnicodeDecodeError as error:
        read = error.object[: error.start]
        line, column = read.count(b"\n") + 1, len(read) - (read.rfind(b"\n") + 1) + 1
        message = f"the byte 0x{error.object[error.start]:02x} is not UTF-8; expected a file that is saved as UTF-8"
        raise StudyError(f"{path}:{line}:{column}", message) from None
    except OSError as error:
        raise StudyError(place or str(path), f"{path} cannot be read: {error.strerror}; expected a file") from None


def _walk(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def _mapping(values: Any, source: str, included: bool) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        what = "is empty" if values is None else f"is {kind(values)}"
        if included:
            raise StudyError(f"{source}:1:1", f"{what}; expected keys of a study, such as `train: {{...}}`")
        raise StudyError(f"{source}:1:1", f"{what}, no study; expected a mapping that begins with `schema: 1`")
    return values


def _with_includes(path: File, text: str, open_files: tuple[File, ...]) -> Document:
    values, marks = parse(text, str(path))
    own = Document(dict(_mapping(values, str(path), bool(open_files))), marks)
    files = own.values.get("include", [])
    if not isinstance(files, list) or not all(isinstance(name, str) and name for name in files):
        raise own.error(Mistake(("include",), "expected a list of files, such as [common.yaml]"))
    document: Document | None = None
    chain = (*open_files, path.resolve())
    for index, name in enumerate(files):
        place = own.locate(("include", index))[0]
        file = path.parent / name
        if file.resolve() in chain:
            circle = " includes ".join(str(step.name) for step in (*chain, file))
            raise StudyError(str(place), f"include[{index}]: {circle}; expected files that do not include each other")
        included = _with_includes(file, read_text(file, str(place)), chain)
        document = included.over(document) if document else included
    own = Document({key: value for key, value in own.values.items() if key != "include"}, own.marks)
    return own.over(document) if document else own


def _check_stage_order(older: Document, newer: Document) -> None:
    """Stages are ordered: two files that order the same stages differently contradict each other."""
    old, new = older.values.get("stages"), newer.values.get("stages")
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    common = [name for name in new if name in old]
    expected = [name for name in old if name in new]
    if common != expected:
        name = next(name for name, other in zip(common, expected, strict=True) if name != other)
        order = ", ".join(expected)
        raise newer.error(
            Mistake(("stages", name), f"another file orders these stages {order}; expected the same order")
        )


def _with_override(document: Document, override: str, root: type[Block]) -> Document:
    place = Place(f"{COMMAND_LINE}{override}")
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise StudyError(str(place), "expected PATH=VALUE, such as stages.decay.lr.to=0.1x")
    value, marks = parse(text, "--set", place)
    try:
        path = find_path(name.strip(), root, document.values)
        if path == ("include",):
            raise Mistake(path, "can only be written in a file; expected it there")
        if value is None and not text.strip():
            raise Mistake(path, "has no value; expected one after `=`, such as 0.1x")
    except Mistake as mistake:
        raise StudyError(str(place), f"{dotted(mistake.path)}: {mistake.message}") from None
    parents: dict[Path, Marks] = {path[:length]: Marks(place, place) for length in range(1, len(path))}
    below = {(*path, *inner): mark for inner, mark in marks.items()} or {path: Marks(place, place)}
    return Document(change(document.values, path, value), {**parents, **document.marks, **below})
