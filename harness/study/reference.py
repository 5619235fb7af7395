"""The reference of the study file, written from the schema: what it says cannot differ from what is accepted."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.study.blocks import Block
from harness.study.defaults import code, held
from harness.study.schema import ArmSpec, StudySpec
from harness.study.schema.study import BaseChange

HEAD = """\
# Reference of the study file

Generated from the schema by `ablate schema --markdown`; what stands here is what is accepted, and anything else is
refused by name. `ablate schema > study.schema.json` gives an editor the same as completion and checks.

Counts of tokens take k, M, B, T (decimal), Ki, Mi, Gi (binary) or `2^n`; `~` in front rounds to whole batches and says
so. Lengths and batches are whole numbers, `2^n`, `Ki`, `Mi` or `Gi`. A rate is a number or `0.1x`, which is times
`optimizer.lr`. Whole numbers stay below 2^63. Mappings merge by name (include, `train`, an arm's change); mixtures,
lists, rope settings and a schedule that names its shape are replaced whole.
"""


def reference() -> str:
    """Markdown: one section a block, in the order in which a reader meets them, one row a key."""
    sections = [HEAD]
    for title, block in _blocks():
        sections.append(_section(title, block))
    blocks = [f"base.{name}" for name in BaseChange.names()] + [name for name in ArmSpec.names() if name != "base"]
    changed = ", ".join(f"`{name}`" for name in blocks)
    sections.append(
        f"## What an arm may change\n\n{changed}, and every path inside these; all else is the same for every arm.\n"
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
        key = field.alias or name
        lines.append(f"| `{key}` | {_cell(field.description or '')} | {_default(block, field, key)} |")
    if block.later:
        lines += [
            "",
            f"Planned, and refused by name until then: {', '.join(f'`{key}`' for key in sorted(block.later))}.",
        ]
    return "\n".join([*lines, ""])


def _default(block: type[Block], field: FieldInfo, key: str) -> str:
    if field.is_required():
        return "must be given"
    if (known := held(block, key)) is not None:
        return known
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if value is None or value is PydanticUndefined or isinstance(value, Block) or value in ([], {}):
        return ""
    return code(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
