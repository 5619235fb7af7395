"""Controls: what must hold before any other arm is worth its cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.study.blocks import Block, Margin, choice
from harness.study.schema.scalars import Seeds, Text


class ControlSeedsSpec(Block):
    """The replicates of an A/A arm: like `seeds`, which also says from which stage on they part."""

    init: Seeds | None = Field(None, description="a list of whole numbers from 0, where `seeds` lists some as well")
    data: Seeds | None = Field(None, description="a list of whole numbers from 0, where `seeds` lists some as well")
    pair: Annotated[Literal["zip", "product"], choice("zip", "product")] = Field(
        "product", description="zip or product"
    )


class ReproduceSpec(Block):
    """A number that an arm must come to."""

    arm: Text = Field("default", description="the name of an arm")
    metric: Text = Field(description="a metric, such as bpb.web or base.average")
    at: Text = Field("end", description="base, the name of a stage, or end, as listed in eval.at")
    value: float = Field(description="a number in the metric's own unit (0.431, not 43.1 percent)")
    tolerance: Margin = Field(
        description="the largest distance of the mean over the seeds: 0.5pp for a score, or a number in its own unit"
    )


class ControlSpec(Block):
    """One control, of one of two kinds: an A/A arm (`same_as` and `seeds`) or a number (`reproduce`).

    All other arms are held, not trained, until every control has passed.
    """

    name: Text = Field(description="the control's name")
    same_as: Text | None = Field(
        None, description="the name of an arm that is trained again with other seeds and must not differ"
    )
    seeds: ControlSeedsSpec | None = Field(None, description="a mapping of init, data, pair: the seeds of an A/A arm")
    reproduce: ReproduceSpec | None = Field(None, description="a mapping of arm, metric, at, value, tolerance")
