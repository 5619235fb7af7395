"""Values against the schema; what pydantic says about them is put in the user's words here and shown nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.study.blocks import MAPPING_TAG, SAID, TEXT_TAG, UNKNOWN_KEY, Block
from harness.study.errors import Mistake, nearest
from harness.study.paths import Path, block_at, description, dotted, is_list
from harness.study.schema import NULLABLE
from harness.study.units import kind

AnyBlock = TypeVar("AnyBlock", bound=Block)

_CONFIG = ("base", "model", "config")  # below it the schema does not say what is written
_ITEM = 3  # keys down to a key of an item of `ablate`; below it are axes, whose values are checked where they apply


def validate(model: type[AnyBlock], values: Any, order: Callable[[Mistake], Any] | None = None) -> AnyBlock:
    """`values` as `model`. Raises Mistake for the first mistake: by `order` (the place in the file), else as found."""
    try:
        block = model.model_validate(values)
    except ValidationError as error:
        mistakes = [_mistake(model, details) for details in error.errors(include_url=False)]
        raise min(mistakes, key=order) if order else mistakes[0] from None
    for path in _empty(values, ()):
        raise Mistake(path, f"is empty; expected {_expected(model, path)}")
    return block


def _mistake(model: type[Block], details: ErrorDetails) -> Mistake:
    path: Path = tuple(key for key in details["loc"] if key not in (TEXT_TAG, MAPPING_TAG))
    value = details["input"]
    if details["type"] == SAID:
        message = str(details["ctx"]["message"])
        if TEXT_TAG in details["loc"]:  # a word where a mapping may stand, too
            message = f"{message} Expected {_expected(model, path)}."
        return Mistake(path, message)
    if details["type"] == UNKNOWN_KEY:
        return _unknown_key(model, path)
    if details["type"] == "missing":
        return Mistake(path, f"is missing; expected {_expected(model, path)}")
    return Mistake(path, f"{_wrong(details, value)}; expected {_expected(model, path)}")


def _unknown_key(model: type[Block], path: Path) -> Mistake:
    key, block = str(path[-1]), block_at(model, path[:-1])
    if block is not None and (refusal := block.refusal(key)):
        return Mistake(path, refusal, at_key=True)
    valid = block.names() if block is not None else []
    where = f"`{dotted(path[:-1])}`" if len(path) > 1 else "a study"
    return Mistake(path, f"`{key}` is not known in {where}; {nearest(key, valid)}", at_key=True)


def _wrong(details: ErrorDetails, value: Any) -> str:
    if details["type"] == "bool_type" and isinstance(value, str):
        return f"is {kind(value)} (in YAML 1.2 only true and false are truth values)"
    if details["type"] in ("too_short", "too_long", "string_too_short"):
        entries = "entry" if len(value) == 1 else "entries"
        return f"has {len(value)} {entries}" if value else "is empty"
    return f"is {kind(value)}"


def _expected(model: type[Block], path: Path) -> str:
    said = description(model, path)
    if said is None and isinstance(path[-1], str) and (block := block_at(model, path)):  # under a name of the user's
        return f"a mapping of {', '.join(block.names())}"
    listed = "a list, inside " if said is None and isinstance(path[-1], str) and is_list(model, path) else ""
    inner = path
    while said is None and inner:  # an entry of a list or of names: what the list expects says it best
        inner = inner[:-1]
        said = description(model, inner)
    return listed + (said or "another value")


def _empty(values: Any, path: Path) -> list[Path]:
    """Paths of the values that were left empty where that has no meaning."""
    if path == _CONFIG or (path[:1] == ("ablate",) and len(path) == _ITEM and values is not None):
        return []
    if isinstance(values, Mapping):
        return [found for key, value in values.items() for found in _empty(value, (*path, key))]
    if isinstance(values, list):
        return [found for index, value in enumerate(values) for found in _empty(value, (*path, index))]
    return [path] if values is None and path and path[-1] not in NULLABLE else []
