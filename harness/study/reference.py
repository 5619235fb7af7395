"""The reference of the study file, written from the schema: what it says cannot differ from what is accepted."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from fractions import Fraction
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.study.blocks import Block
from harness.study.schema import ArmSpec, StudySpec

HEAD = """\
# Reference of the study file

Generated from the schema by `ablate schema --markdown`; what stands here is what is accepted, and anything else is
refused by name. `ablate schema > study.schema.json` gives an editor the same as completion and checks.

Counts of tokens take k, M, B, T (decimal); `~` in front rounds to whole batches and says so. Lengths and batches are
whole numbers, `2^n`, `Ki` or `Mi`. A rate is a number or `0.1x`, which is times `optimizer.lr`. Mappings merge by name
(include, `train`, an arm's change); mixtures, lists, rope settings and a schedule that names its shape are replaced
whole.
"""


def reference() -> str:
    """Markdown: one section a block, in the order in which a reader meets them, one row a key."""
    sections = [HEAD]
    for title, block in _blocks():
        sections.append(_section(title, block))
    changed = ", ".join(f"`{name}`" for name in ArmSpec.names())
    sections.append(
        f"## What an arm may change\n\nPaths that begin with {changed}; all else is the same for every arm.\n"
    )
    return "\n".join(sections)


def _blocks() -> Iterator[tuple[str, type[Block]]]:
    """Every block under the path at which it is first met, breadth first; `NAME` stands for a name of the user's."""
    waiting: list[tuple[str, type[Block]]] = [("", StudySpec)]
    met: set[type[Block]] = {StudySpec}
    while waiting:
        path, block = waiting.pop(0)
        yield path, block
        for name, field in block.model_fields.items():
            key = field.alias or name
            for suffix, inner in _inner(field.annotation):
                if inner not in met:
                    met.add(inner)
                    waiting.append((f"{path}.{key}{suffix}" if path else f"{key}{suffix}", inner))


def _inner(form: Any) -> Iterator[tuple[str, type[Block]]]:
    """The blocks inside an annotation, each with what stands between it and its key."""
    origin = get_origin(form)
    if origin is Annotated:
        yield from _inner(get_args(form)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(form):
            yield from _inner(part)
    elif origin is dict:
        yield from ((f".NAME{suffix}", block) for suffix, block in _inner(get_args(form)[1]))
    elif origin is list:
        yield from ((f"[ ]{suffix}", block) for suffix, block in _inner(get_args(form)[0]))
    elif isinstance(form, type) and issubclass(form, Block):
        yield "", form


def _section(title: str, block: type[Block]) -> str:
    lines = [f"## {f'`{title}`' if title else 'A study'}", ""]
    if block.__doc__ and block.__doc__ != Block.__doc__:
        lines += [" ".join(block.__doc__.split()), ""]
    lines += ["| key | takes | default |", "|:--|:--|:--|"]
    for name, field in block.model_fields.items():
        lines.append(f"| `{field.alias or name}` | {_cell(field.description or '')} | {_default(field)} |")
    if block.later:
        lines += [
            "",
            f"Planned, and refused by name until then: {', '.join(f'`{key}`' for key in sorted(block.later))}.",
        ]
    return "\n".join([*lines, ""])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if value is None or value is PydanticUndefined or isinstance(value, Block) or value in ([], {}):
        return ""
    return f"`{_cell(_text(value))}`"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, Enum | Fraction):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
