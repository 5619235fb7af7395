"""Paths of keys: `stages.decay.lr.to` as a user writes it, checked against the schema, and what is meant there."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from harness.study.blocks import Block
from harness.study.errors import Mistake, nearest

Path = tuple[str | int, ...]


def dotted(path: Sequence[str | int]) -> str:
    """A path as a user writes it: `ablate[0].grid[1]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def value_at(document: Any, path: Sequence[str | int]) -> Any:
    """The value at `path`; raises KeyError where there is none."""
    for key in path:
        item_of_list = isinstance(document, list) and isinstance(key, int) and key < len(document)
        if not item_of_list and not isinstance(document, Mapping):
            raise KeyError(key)
        document = document[key]
    return document


def has(document: Any, path: Sequence[str | int]) -> bool:
    try:
        value_at(document, path)
    except KeyError:
        return False
    return True


def find_path(text: str, root: type[Block], document: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a dotted path, each known to the schema or, where users give names, to the document.

    Names may hold dots: at every level the longest name that fits is taken. Raises Mistake, whose path is as much
    as is known, with the nearest valid name.
    """
    path: tuple[str, ...] = ()
    rest = text.replace("[", ".").replace("]", "")  # `ablate[0].grid`, as messages write it
    form: Any = root
    while rest:
        here = _inside(form)
        if isinstance(here, type) and issubclass(here, Block):
            valid: Iterable[str] = here.names()
        elif get_origin(here) is dict:
            if get_args(here)[1] is Any:
                return (*path, *rest.split("."))
            if path == ("compare", "allow"):  # keys are arms, which are checked against the arms themselves
                return (*path, rest)
            valid = _names(path, document)
        else:
            what = "is a list, which is set whole" if get_origin(here) is list else "holds one value"
            raise Mistake(path, f"{what}, so `{text}` names nothing; expected `{dotted(path)}`")
        key = _longest(rest, valid)
        if key is None and not path and (meant := of_stage(text, document)):
            raise Mistake((rest.partition(".")[0],), meant, at_key=True)
        if key is None:
            raise _unknown(path, rest.partition(".")[0], here, valid)
        path, rest = (*path, key), rest[len(key) + 1 :]
        form = _child(here, key)
    return path


def of_stage(text: str, document: Mapping[str, Any]) -> str | None:
    """What is said of a path that begins with the name of a stage, as arms' names do; None of any other."""
    name = text.partition(".")[0]
    if name not in (document.get("stages") or {}):
        return None
    return f"`{name}` is a stage; did you mean `stages.{text}`? A path is expected whole."


def description(root: type[Block], path: Sequence[str | int]) -> str | None:
    """What the schema says is expected at `path`; None where it says nothing."""
    form: Any = root
    said: str | None = None
    for key in path:
        here = _inside(form)
        said = None
        if isinstance(here, type) and issubclass(here, Block):
            if key not in here.names():
                return None
            said = _field(here, str(key)).description
        form = _child(here, str(key))
    return said


def block_at(root: type[Block], path: Sequence[str | int]) -> type[Block] | None:
    """The block of the schema that holds the keys at `path`."""
    here = _form_at(root, path)
    return here if isinstance(here, type) and issubclass(here, Block) else None


def is_list(root: type[Block], path: Sequence[str | int]) -> bool:
    """Whether the schema has a list at `path`."""
    return get_origin(_form_at(root, path)) is list


def _form_at(root: type[Block], path: Sequence[str | int]) -> Any:
    form: Any = root
    for key in path:
        form = _child(_inside(form), str(key))
    return _inside(form)


def _unknown(path: Path, key: str, here: Any, valid: Iterable[str]) -> Mistake:
    if isinstance(here, type) and issubclass(here, Block) and (refusal := here.refusal(key)):
        return Mistake((*path, key), refusal, at_key=True)
    where = f"`{dotted(path)}`" if path else "the study"
    return Mistake((*path, key), f"`{key}` is not known in {where}; {nearest(key, valid)}", at_key=True)


def _longest(rest: str, valid: Iterable[str]) -> str | None:
    fits = [name for name in valid if rest == name or rest.startswith(f"{name}.")]
    return max(fits, key=len, default=None)


def _names(path: Path, document: Mapping[str, Any]) -> list[str]:
    if path[-1] == "mixture":
        return list(document.get("sources") or {})
    try:
        names = value_at(document, path)
    except KeyError:
        return []
    return list(names) if isinstance(names, Mapping) else []


def _field(block: type[Block], key: str) -> Any:
    return next(field for name, field in block.model_fields.items() if key == (field.alias or name))


def _inside(form: Any) -> Any:
    """The block, mapping or list inside an annotation; None for a single value."""
    origin = get_origin(form)
    if origin is Annotated:
        return _inside(get_args(form)[0])
    if origin in (Union, types.UnionType):
        return next((inner for inner in map(_inside, get_args(form)) if inner is not None), None)
    if origin in (dict, list) or (isinstance(form, type) and issubclass(form, Block)):
        return form
    return None


def _child(here: Any, key: str) -> Any:
    if here is None:
        return None
    if isinstance(here, type) and issubclass(here, Block):
        known = key in here.names()
        return _field(here, key).annotation if known else None
    return get_args(here)[-1]
