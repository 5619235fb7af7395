"""A study file as plain values, with the place of every key and value: YAML 1.2, include, `--set`.

Strict where YAML is lenient: duplicate keys, merge keys (`<<`), tags and keys that are not text are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.study.blocks import Block
from harness.study.errors import Mistake, StudyError, nearest
from harness.study.includes import change, merge
from harness.study.paths import Path, dotted, find_path, has
from harness.study.units import LARGEST, LONGEST_SHOWN

_TAG = "tag:yaml.org,2002:"
COMMAND_LINE = "--set "  # how the place of a value begins that was written there


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: a line of a file, or (line 0) a `--set` of the command line."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Marks:
    """The places of one key (or list item) and of its value."""

    key: Place
    value: Place


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
        block = isinstance(_walk(self.values, path), Mapping | list)
        return marks.key if at_key or block else marks.value

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
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(place or str(path), f"{path} cannot be read: {error}; expected UTF-8 text") from None


def parse(text: str, source: str, whole: Place | None = None) -> tuple[Any, dict[Path, Marks]]:
    """YAML text as plain values with marks. `whole`: one place for everything, for text from the command line."""
    reader = _Reader(source, whole)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = whole or (Place(source, mark.line + 1, mark.column + 1) if mark else Place(source))
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise StudyError(str(place), f"is not YAML: {problem}") from None
    except YAMLError as error:
        raise StudyError(str(whole or source), f"is not YAML: {' '.join(str(error).split())}") from None
    return (reader.read(node, ()) if node is not None else None), reader.marks


class _Reader:
    """Builds plain values from composed nodes."""

    def __init__(self, source: str, whole: Place | None) -> None:
        self.source, self.whole = source, whole
        self.marks: dict[Path, Marks] = {}
        self._open: set[int] = set()  # nodes being read: an alias to one of them never ends

    def place(self, node: Node) -> Place:
        mark = node.start_mark
        return self.whole or Place(self.source, mark.line + 1, mark.column + 1)

    def read(self, node: Node, path: Path, key: Node | None = None) -> Any:
        self.marks[path] = Marks(self.place(key or node), self.place(node))
        if id(node) in self._open:
            raise self.error(key or node, path, "holds itself through an alias; expected plain values")
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return {name: self.read(value, (*path, name), key) for name, key, value in self._entries(node, path)}
            if isinstance(node, SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalar(node, path)
        finally:
            self._open.discard(id(node))

    def error(self, node: Node, path: Path, message: str) -> StudyError:
        return StudyError(str(self.place(node)), f"{dotted(path)}: {message}" if path else message)

    def _entries(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Node, Node]]:
        first: dict[str, Node] = {}
        self._check_tag(node, path, "map")
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                raise self.error(key, path, "`<<` is not YAML 1.2; expected the keys themselves, or `include`")
            if not isinstance(key, ScalarNode) or key.tag not in (f"{_TAG}str", f"{_TAG}timestamp"):
                shown = f"`{key.value}`" if isinstance(key, ScalarNode) else "a list or mapping"
                raise self.error(key, path, f"the key {shown} is not text; expected a name, in quotes if need be")
            name = self._text(key, path)
            if name in first:
                before = self.place(first[name])
                raise self.error(key, (*path, name), f"is written twice, first at {before}; expected it once")
            first[name] = key
            yield name, key, value

    def _check_tag(self, node: Node, path: Path, *known: str) -> None:
        if str(node.tag) not in {_TAG + name for name in known}:
            raise self.error(
                node, path, f"has the tag `{str(node.tag).replace(_TAG, '!!')}`; expected a plain value without a tag"
            )

    def _scalar(self, node: Node, path: Path) -> Any:
        text = str(node.value)
        self._check_tag(node, path, "null", "bool", "int", "float", "str", "timestamp", "value")
        kind = str(node.tag).removeprefix(_TAG)
        try:
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _decimal(text)
        except OverflowError:
            message = f"`{_cut(text)}` is more than 64 bits hold; expected a number from -2^63 to below 2^63"
            raise self.error(node, path, message) from None
        except ValueError:
            message = f"`{_cut(text)}` is no number; expected a finite one, or text in quotes"
            raise self.error(node, path, message) from None
        return None if kind == "null" else text.lower() == "true" if kind == "bool" else self._text(node, path)

    def _text(self, node: Node, path: Path) -> str:
        """Text that can be written to a file and name one."""
        text = str(node.value)
        for character in text:
            if character == "\0" or "\ud800" <= character <= "\udfff":
                message = f"holds the character \\u{ord(character):04x}, which no file can; expected text without it"
                raise self.error(node, path, message)
        return text


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits.lstrip("+-")[:2].lower(), 10)
    number = int(digits, base)
    if not -LARGEST - 1 <= number <= LARGEST:
        raise OverflowError
    return number


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _decimal(text: str) -> float:
    number = float(text.replace("_", ""))  # `.inf` and `.nan` are no numbers for float()
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _walk(values: Any, path: Path) -> Any:
    for key in path:
        values = values[key]
    return values


def _mapping(values: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise StudyError(f"{source}:1:1", "is not a study; expected a mapping that begins with `schema: 1`")
    return values


def _with_includes(path: File, text: str, open_files: tuple[File, ...]) -> Document:
    values, marks = parse(text, str(path))
    own = Document(dict(_mapping(values, str(path))), marks)
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
