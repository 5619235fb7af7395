"""YAML text as plain values, with the place of every key and value.

Strict where YAML is lenient: duplicate keys, merge keys (`<<`), tags and keys that are not text are refused, and so is
what only YAML 1.1 reads as true or false.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from harness.study.errors import StudyError
from harness.study.paths import Path, dotted
from harness.study.units import LARGEST, cut

_TAG = "tag:yaml.org,2002:"
DEEPEST = 64  # levels of a study; what handles them later goes down one by one
MOST_ALIASED = 100_000  # values that aliases stand for: a few lines of them can stand for billions


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


# What a mistake in the YAML itself most often is: words of the parser → what was expected.
_MEANT = {
    "'\\t'": "expected spaces, not a tab",
    "mapping values are not allowed": "expected a space after every colon, one column for the keys of a block, and "
    "text that holds `: ` in quotes",
    "could not find expected ':'": "expected `key: value`, with a space after the colon",
    "while parsing a flow mapping": "expected `}` after the last entry, and commas between them",
    "while parsing a flow sequence": "expected `]` after the last entry, and commas between them",
    "while parsing a block": "expected the same indentation for all entries of a block",
    "quoted scalar": "expected text with a quote at its end; a backslash needs single quotes",
    "found character": "expected text that begins so in quotes",
    "undefined alias": "expected text that begins with `*` in quotes, or an anchor `&` of that name further up",
    "another document": "expected one study a file, without a second `---`",
}


def parse(text: str, source: str, whole: Place | None = None) -> tuple[Any, dict[Path, Marks]]:
    """YAML text as plain values with marks. `whole`: one place for everything, for text from the command line."""
    reader = _Reader(source, whole)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
        return (reader.read(node, ()) if node is not None else None), reader.marks
    except MarkedYAMLError as error:
        raise StudyError(str(whole or _place_of(error, source)), f"is not YAML: {_problem(error)}") from None
    except ReaderError as error:
        before = text[: error.position]
        place = Place(source, before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
        message = f"holds the character \\u{ord(text[error.position]):04x}, which YAML does not allow; expected text"
        raise StudyError(str(whole or place), f"{message} without it") from None
    except YAMLError as error:
        raise StudyError(str(whole or source), f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise StudyError(str(whole or source), f"is nested too deeply; expected at most {DEEPEST} levels") from None


def _place_of(error: MarkedYAMLError, source: str) -> Place:
    """Where the mistake is: for a key without a colon, and text without its end, where it begins."""
    begins = error.context is not None and error.context.startswith("while scanning a")
    first, second = error.context_mark, error.problem_mark
    mark = (first or second) if begins else (second or first)
    return Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)


def _problem(error: MarkedYAMLError) -> str:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    begun = error.context_mark
    if begun is not None and error.problem_mark is not None and begun.line + 1 < _place_of(error, "").line:
        said += f" (it begins in line {begun.line + 1})"
    meant = next((meant for words, meant in _MEANT.items() if words in said), "expected YAML 1.2")
    return f"{said}; {meant}"


class _Reader:
    """Builds plain values from composed nodes."""

    def __init__(self, source: str, whole: Place | None) -> None:
        self.source, self.whole = source, whole
        self.marks: dict[Path, Marks] = {}
        self._open: set[int] = set()  # nodes being read: an alias to one of them never ends
        self._read: set[int] = set()  # nodes that were read
        self._aliased = 0  # how often one was read again

    def place(self, node: Node) -> Place:
        mark = node.start_mark
        return self.whole or Place(self.source, mark.line + 1, mark.column + 1)

    def read(self, node: Node, path: Path, key: Node | None = None) -> Any:
        unwritten = isinstance(node, ScalarNode) and not node.value and node.tag == f"{_TAG}null"
        self.marks[path] = Marks(self.place(key or node), self.place(key if key and unwritten else node))
        if len(path) > DEEPEST:
            raise self.error(key or node, path[:1], f"is nested too deeply; expected at most {DEEPEST} levels")
        self._aliased += id(node) in self._read
        self._read.add(id(node))
        if self._aliased > MOST_ALIASED:
            message = f"aliases stand for more than {MOST_ALIASED:,} values by here; expected them written out"
            raise self.error(key or node, path[:1], message)
        if id(node) in self._open:
            raise self.error(key or node, path, "holds itself through an alias; expected plain values")
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return {name: self.read(value, (*path, name), key) for name, key, value in self._entries(node, path)}
            if isinstance(node, SequenceNode):
                self._check_tag(node, path, "seq")
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
                message = f"the key {shown} is not text; expected a name, in quotes if need be"
                if node.flow_style and not value.value:  # `{tokens: 60,000}` holds two entries
                    message += " (a comma ends an entry: numbers are written without, and with a decimal point)"
                raise self.error(key, path, message)
            name = self._text(key, path)
            if ":" in name and value.tag == f"{_TAG}null" and not value.value:
                raise self.error(key, (*path, name), "has no value; expected `name: value`, a space after the colon")
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
            message = f"`{cut(text)}` is more than 64 bits hold; expected a number from -2^63 to below 2^63"
            raise self.error(node, path, message) from None
        except ValueError:
            message = f"`{cut(text)}` is no number; expected a finite one, or text in quotes"
            raise self.error(node, path, message) from None
        if kind == "bool" and text.lower() not in ("true", "false"):
            raise self.error(node, path, f"`{text}` is a truth value in YAML 1.1 alone; expected true or false")
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


def _decimal(text: str) -> float:
    number = float(text.replace("_", ""))  # `.inf` and `.nan` are no numbers for float()
    if not math.isfinite(number):
        raise ValueError(text)
    return number
