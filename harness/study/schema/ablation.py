"""Which arms and replicates a study has: the items of `ablate`, and the seeds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from harness.study.blocks import Block, Share, SourceOrGroup, choice
from harness.study.schema.scalars import Seeds, Text


class SeedsSpec(Block):
    init: Seeds | None = Field(None, description="a list of whole numbers from 0")
    data: Seeds | None = Field(None, description="a list of whole numbers from 0")
    pair: Annotated[Literal["zip", "product"], choice("zip", "product")] = Field(
        "product", description="zip or product"
    )
    from_: Text | None = Field(None, alias="from", description="the name of a stage that is not the first")


OverCap = Annotated[Literal["error", "drop"], choice("error", "drop")]
OVER = "error or drop: what becomes of an arm that serves a source more often than its max_epochs"
ALIAS = "a name for the axis in arms' names, `exclude` and `when`, such as len"
WHEN = "a mapping of another axis to the values where this one applies, such as {shape: [linear, cosine]}"


class MixtureAxis(Block):
    """Shares of a source, or of a group that keeps its inner ratio; another source, or all others in proportion, absorb
    what it takes or gives."""

    stage: Text = Field(description="the name of a stage")
    vary: SourceOrGroup = Field(description="the name of a source, or a list of sources that keep their ratio")
    values: Annotated[list[Share], Field(min_length=1)] = Field(description="a list of shares from 0 to 1")
    absorb: Text = Field(description="the name of a source, or proportional")
    as_: Text | None = Field(None, alias="as", description=ALIAS)
    when: dict[str, Any] | None = Field(None, description=WHEN)
    over: OverCap = Field("error", description=OVER)


class AddOne(Block):
    """One thing at a time on top of the study: a source at a share, or each of several changes alone."""

    of: Text | None = Field(None, description="the path of a stage's mixture, such as stages.decay.mixture")
    values: Annotated[dict[str, Share], Field(min_length=1)] | None = Field(
        None, description="a mapping source: share, each an arm"
    )
    absorb: Text | None = Field(None, description="the name of a source, or proportional")
    changes: Annotated[dict[str, Any], Field(min_length=1)] | None = Field(
        None, description="a mapping path: value, each an arm"
    )
    over: OverCap = Field("error", description=OVER)


class LeaveOneOut(Block):
    """All but one: each source of a mixture goes in turn, or each of several changes, after the arm with all."""

    of: Text | None = Field(None, description="the path of a stage's mixture, such as stages.decay.mixture")
    absorb: Text | None = Field(None, description="the name of a source, or proportional")
    changes: Annotated[dict[str, Any], Field(min_length=2)] | None = Field(
        None, description="a mapping of at least two paths: value"
    )
    over: OverCap = Field("error", description=OVER)


AXIS_SCHEMA = {
    "description": "one axis: path: [values] with `as` and `when`, or mixture: {stage, vary, values, absorb}",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 3,
    "properties": {"mixture": {"type": "object"}, "as": {"type": "string"}, "when": {"type": "object"}},
    "additionalProperties": {"type": "array", "minItems": 1},
}
Axis = Annotated[dict[str, Any], WithJsonSchema(AXIS_SCHEMA)]
Axes = Annotated[list[Axis], Field(min_length=1)]
KINDS = ("grid", "zip", "cases", "one_at_a_time", "add_one", "leave_one_out", "mixture")


class ItemSpec(Block):
    """One item of `ablate`: one of grid, zip, cases, one_at_a_time, add_one, leave_one_out, mixture. `exclude` and
    `when` choose among the rows of a grid or zip; `as` names the rows of a zip."""

    grid: Axes | None = Field(None, description="a list of at least one axis, such as - stages.decay.lr.to: [0, 0.1x]")
    zip: Axes | None = Field(None, description="a list of axes of equal length")
    cases: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one name: {path: value}"
    )
    one_at_a_time: Annotated[dict[str, list[Any]], Field(min_length=1)] | None = Field(
        None, description="a mapping of at least one path: [values]"
    )
    add_one: AddOne | None = Field(None, description="a mapping with the keys `of`, `values`, `absorb`; or `changes`")
    leave_one_out: LeaveOneOut | None = Field(None, description="a mapping with the keys `of`, `absorb`; or `changes`")
    mixture: MixtureAxis | None = Field(None, description="a mapping of stage, vary, values, absorb")
    exclude: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        None, description="a list of {path, source or alias: value}: rows that are no arms"
    )
    when: Annotated[dict[str, Any], Field(min_length=1)] | None = Field(
        None, description="{path, source or alias: value or list of values}: only these rows are arms"
    )
    as_: Text | None = Field(None, alias="as", description="a name for the rows of a zip, such as len")
    over: OverCap = Field("error", description=OVER)
