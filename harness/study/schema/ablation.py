"""Which arms and replicates a study has: the items of `ablate`, and the seeds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from harness.study.blocks import Block, OneSource, Share, choice
from harness.study.schema.scalars import Seeds, Text


class SeedsSpec(Block):
    init: Seeds | None = Field(None, description="a list of whole numbers from 0")
    data: Seeds | None = Field(None, description="a list of whole numbers from 0")
    pair: Annotated[Literal["zip", "product"], choice("zip", "product")] = Field(
        "product", description="zip or product"
    )
    from_: Text | None = Field(None, alias="from", description="the name of a stage that is not the first")


class MixtureAxis(Block):
    """Shares of one source; what it takes or gives is absorbed by another source, or by all in proportion."""

    later: ClassVar[frozenset[str]] = frozenset({"over", "as", "when"})

    stage: Text = Field(description="the name of a stage")
    vary: OneSource = Field(description="the name of a source")
    values: Annotated[list[Share], Field(min_length=1)] = Field(description="a list of shares from 0 to 1")
    absorb: Text = Field(description="the name of a source, or proportional")


AXIS_SCHEMA = {
    "description": "one axis: path: [values], or mixture: {stage, vary, values, absorb}",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"mixture": {"type": "object"}},
    "additionalProperties": {"type": "array", "minItems": 1},
}
Axis = Annotated[dict[str, Any], WithJsonSchema(AXIS_SCHEMA)]
Axes = Annotated[list[Axis], Field(min_length=1)]


class ItemSpec(Block):
    """One item of `ablate`: one of grid, zip, cases, one_at_a_time or mixture; `exclude` belongs to a grid."""

    later: ClassVar[frozenset[str]] = frozenset({"add_one", "leave_one_out", "when", "as", "over"})

    grid: Axes | None = Field(None, description="a list of at least one axis, such as - stages.decay.lr.to: [0, 0.1x]")
    zip: Axes | None = Field(None, description="a list of axes of equal length")
    cases: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one name: {path: value}"
    )
    one_at_a_time: Annotated[dict[str, list[Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one path: [values]"
    )
    mixture: MixtureAxis | None = Field(None, description="a mapping of stage, vary, values, absorb")
    exclude: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a list of {path or source: value}"
    )
