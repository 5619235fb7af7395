"""Every key of the study file and every value of its closed choices, from the schema: what must be shown to act."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from harness.study.blocks import Block
from harness.study.schema import StudySpec

Written = Mapping[str, Any]  # dotted path → what is written there
GONE = "<gone>"  # what was written there is taken out


@dataclass(frozen=True)
class Probe:
    """Two studies (or arms) that differ in one key alone, both over the same start."""

    one: Written = field(default_factory=dict)
    other: Written = field(default_factory=dict)


def entries(block: type[Block] = StudySpec, path: str = "") -> Iterator[str]:
    """`train.context.length` for a key that takes a value, `train.context.rope=base` for each word of a closed choice;
    `NAME` stands for a name of the user's, `[ ]` for an item of a list."""
    for name, one in block.model_fields.items():
        yield from _of(one.annotation, f"{path}.{one.alias or name}" if path else one.alias or name)


def _of(form: Any, key: str) -> Iterator[str]:
    origin, inner = get_origin(form), get_args(form)
    if form is type(None):
        return
    if origin is Annotated:
        yield from _of(inner[0], key)
    elif origin in (Union, types.UnionType):
        yield from dict.fromkeys(entry for part in inner for entry in _of(part, key))
    elif origin is Literal:
        yield from (f"{key}={value}" for value in inner)
    elif isinstance(form, type) and issubclass(form, Block):
        yield from entries(form, key) if form.model_fields else (key,)
    elif origin in (dict, list) and (block := _block_of(inner[-1])) is not None:
        yield from entries(block, f"{key}.NAME" if origin is dict else f"{key}[ ]")
    else:
        yield key


def _block_of(form: Any) -> type[Block] | None:
    form = get_args(form)[0] if get_origin(form) is Annotated else form
    return form if isinstance(form, type) and issubclass(form, Block) else None


REPLACED = ("mixture", "rope")  # whole; so is a schedule that names its shape


def written(study: Mapping[str, Any], changes: Written) -> dict[str, Any]:
    """A study with other values written into it by hand: what an arm's change must come to, said a second time."""
    found = copy.deepcopy(dict(study))
    for path, value in changes.items():
        if path == "lr":  # one schedule over all stages
            for block in (found["train"], *found["stages"].values()):
                block.pop("lr", None)
        *above, last = path.split(".")
        block = found
        for key in above:
            block = block.setdefault(key, {})
        if value == GONE:
            block.pop(last)
            continue
        block[last] = _merged(block.get(last), copy.deepcopy(value), last)
    return found


def _merged(old: Any, new: Any, key: str) -> Any:
    whole = key in REPLACED or (key == "lr" and isinstance(new, dict) and "shape" in new)
    if whole or not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{name: _merged(old.get(name), value, name) for name, value in new.items()}}


def write(path: Path, study: Mapping[str, Any]) -> Path:
    """A study as a file; JSON is YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(study, indent=1))
    return path
