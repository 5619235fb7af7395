"""The sources of a study: from what it declares to documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from harness.data import arithmetic, hub, passages, stdlib
from harness.data.files import DEFAULT_FIELD, matching_files, read_files, takes_field
from harness.plan.canonical import digest
from harness.study.checks import PARAMETERS
from harness.study.errors import UserError, nearest

DEFAULT_HELD_OUT = Fraction(1, 50)


@dataclass(frozen=True, slots=True)
class _Builtin:
    """A generator that ships with the harness, whose parameters are `PARAMETERS`. `version`: changes when its text
    does."""

    documents: Callable[[Mapping[str, Any]], Iterator[str]]
    version: Callable[[], str]


def _arithmetic(parameters: Mapping[str, Any]) -> Iterator[str]:
    return arithmetic.generate(parameters["documents"], parameters["seed"])


def _passages(parameters: Mapping[str, Any]) -> Iterator[str]:
    smallest, largest = parameters["distance"]
    found = passages.generate(parameters["documents"], parameters["seed"], (smallest, largest))
    return (document.text for document in found)


BUILTINS: Mapping[str, _Builtin] = {
    "python_code": _Builtin(lambda _: stdlib.python_code(), stdlib.version),
    "python_docs": _Builtin(lambda _: stdlib.python_docs(), stdlib.version),
    "arithmetic": _Builtin(_arithmetic, lambda: str(arithmetic.GENERATOR_VERSION)),
    "passages": _Builtin(_passages, lambda: str(passages.GENERATOR_VERSION)),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A declared source, ready to be read.

    declared: what decides its documents, defaults filled in: {"builtin", …parameters}, {"files", "text"} or {"hf",
    "name", "split", "revision", "text"}. folder: where relative globs start, the study file's folder. min_length: the
    fewest tokens of a document, 0 for all.
    """

    name: str
    declared: Mapping[str, Any]
    held_out: Fraction
    folder: Path
    min_length: int = 0

    def documents(self) -> Iterator[str]:
        """Every document, held out or not, the same ones in the same order at each call."""
        if "builtin" in self.declared:
            return BUILTINS[self.declared["builtin"]].documents(self.declared)
        return read_files(self.paths(), self.declared["text"], self.name)

    def paths(self) -> list[Path]:
        """The files it is read from; none for a built-in source."""
        if "builtin" in self.declared:
            return []
        if "hf" in self.declared:
            return hub.fetch(self.declared, self.name)
        paths = matching_files(self.declared["files"], self.folder, self.name)
        if self.declared["text"] is not None and not takes_field(paths):
            raise UserError(f"source `{self.name}`: `text` names a field, and .txt files have none; leave `text` out")
        return paths

    @property
    def _of_pool(self) -> dict[str, Any]:
        """`declared` with the field that is read where none is written, and what is held out."""
        field = {"text": self.declared["text"] or DEFAULT_FIELD} if self.is_files else {}
        return {**self.declared, **field, "held_out": f"{self.held_out.numerator}/{self.held_out.denominator}"}

    @property
    def is_files(self) -> bool:
        return "files" in self.declared

    @property
    def whole_declaration(self) -> dict[str, Any]:
        """`declared` with the rules that choose among the documents."""
        shortest = {"min_length": self.min_length} if self.min_length else {}
        return {**self._of_pool, **shortest}

    @property
    def pool(self) -> str:
        """Names the documents that it is a view of: sources that differ in `min_length` alone share their documents."""
        return digest(self._of_pool)

    def origins(self) -> set[str]:
        """Where its documents come from: files, the data set's split, or the generator (less of it is a beginning of
        more). Sources without a common one share no document, as far as declarations say."""
        if self.is_files:
            return {str(path) for path in self.paths()}
        return {digest({key: value for key, value in self.declared.items() if key not in ("documents", "text")})}

    def stamp(self) -> dict[str, Any]:
        """What can be seen without reading: as long as it is the same, so are the documents."""
        declared = self.whole_declaration
        if "builtin" in self.declared:
            return {"declared": declared, "generator": BUILTINS[self.declared["builtin"]].version()}
        if "hf" in self.declared:
            return {"declared": declared}  # a commit never changes
        return {"declared": declared, "files": [file_stamp(path) for path in self.paths()]}


def file_stamp(path: Path) -> dict[str, Any]:
    """Path, size and times of a file. `mtime` can be set back, and is (cp -p, rsync, tar); nobody sets `ctime`."""
    status = path.stat()
    times = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    return {"path": str(path), "size": status.st_size, **times}


def declared_source(name: str, spec: Any, folder: Path) -> Source:
    """The source that a study declares.

    spec: an entry of `study.sources`: a mapping or a pydantic model with the fields of the study's grammar. UserError
    for an unknown built-in, a parameter that it does not take, and a share outside [0, 1).
    """
    fields = dict(spec) if isinstance(spec, Mapping) else spec.model_dump(mode="python")
    given = {key: value for key, value in fields.items() if value is not None}
    held_out = Fraction(str(given.pop("held_out", DEFAULT_HELD_OUT)))
    given.pop("max_epochs", None)
    shortest = int(given.pop("min_length", 0))
    if not 0 <= held_out < 1:
        raise UserError(f"source `{name}`: `held_out` is a share of the documents, at least 0 and below 1")
    if "builtin" in given:
        return Source(name, _builtin_parameters(name, given), held_out, folder, shortest)
    if "hf" in given:
        given = {"split": hub.DEFAULT_SPLIT, "text": "text", **given}
        return Source(name, given, held_out, folder, shortest)
    if "files" not in given or set(given) - {"files", "text"}:
        raise UserError(f"source `{name}`: expected `builtin` or `files` (with `text`), got {sorted(given)}")
    files = {"files": list(given["files"]), "text": given.get("text")}
    return Source(name, files, held_out, folder, shortest)


def declared_sources(study: Any) -> dict[str, Source]:
    """Every source of a study, by name."""
    folder = Path(study.path).absolute().parent
    return {name: declared_source(name, spec, folder) for name, spec in study.sources.items()}


def _builtin_parameters(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    kind = given["builtin"]
    if kind not in BUILTINS:
        raise UserError(f"source `{name}`: there is no built-in source `{kind}`; {nearest(kind, BUILTINS)}")
    defaults = PARAMETERS[kind]
    for key in given:
        if key != "builtin" and key not in defaults:
            raise UserError(f"source `{name}`: `{kind}` takes no parameter `{key}`; {nearest(key, defaults)}")
    parameters = {"builtin": kind, **defaults, **given}
    if "distance" in parameters:
        parameters["distance"] = _distance(name, parameters["distance"])
    if "documents" in parameters and parameters["documents"] < 1:
        raise UserError(f"source `{name}`: `documents` is {parameters['documents']}, expected at least 1")
    return parameters


def _distance(name: str, distance: Any) -> list[int]:
    smallest, largest = distance
    if not passages.SMALLEST_DISTANCE <= smallest <= largest:
        raise UserError(
            f"source `{name}`: `distance` is [smallest, largest] in characters, at least "
            f"{passages.SMALLEST_DISTANCE} and ascending; got {list(distance)}"
        )
    return [int(smallest), int(largest)]
