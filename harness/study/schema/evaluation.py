"""What is evaluated, and what is compared with what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_serializer

from harness.study import units
from harness.study.blocks import MAPPING, TEXT, TEXT_OR_MAPPING, Block, Margin, Size, choice
from harness.study.schema.scalars import Count, CountOrNone, Text, Texts

DEFAULT_PROMPTS = 10  # continued where held-out text is evaluated


class HeldOutSpec(Block):
    window: Size = Field(description="positions per window, such as 2048")
    by_position: bool = Field(False, description="true or false")
    documents: Count = Field(200, description="the largest number of documents per source")


NoHeldOut = Annotated[Literal["none"], choice("none"), TEXT]


class EvalSpec(Block):
    suites: list[Text] = Field(default_factory=list, description="a list of suites, such as [quickstart@1]")
    tasks: list[Text] = Field(default_factory=list, description="a list of lm-eval task names or paths to task YAML")
    at: Texts = Field(
        default_factory=lambda: ["end"],
        description="a list of base, stage names, end, ema (the averaged weights at the end) or `every 1B`",
    )
    max_length: Size | None = Field(None, description="positions, the same for every arm, such as 2048")
    held_out: Annotated[NoHeldOut | Annotated[HeldOutSpec, MAPPING], TEXT_OR_MAPPING] = Field(
        "none", description="a mapping of window, by_position, documents, or none"
    )
    continuations: CountOrNone | None = Field(
        None,
        description="the number of held-out prompts that the first seeds of each arm continue at the end, for reading; "
        "0 for none; where held_out is on, 10 unless written",
    )
    limit: Count | None = Field(None, description="the largest number of items per task, or null for all")
    batch_size: Count = Field(8, description="a positive whole number of sequences")

    @property
    def every(self) -> int | None:
        """N of `every N`, in tokens; None where nothing is evaluated at an interval."""
        intervals = [units.parse_every(text) for text in self.at]
        return next((int(interval.value) for interval in intervals if interval), None)

    @property
    def prompts(self) -> int:
        """How many prompts are continued."""
        if self.continuations is None:
            return 0 if isinstance(self.held_out, str) else DEFAULT_PROMPTS
        return self.continuations

    @property
    def labels(self) -> list[str]:
        """`base`, `end`, `ema` and the names of stages at whose end is evaluated."""
        return [text for text in self.at if units.parse_every(text) is None]


class CompareSpec(Block):
    baseline: Text = Field("default", description="the name of an arm")
    control: Text | None = Field(None, description="the name of an arm")
    equal: Annotated[Literal["tokens", "flops"], choice("tokens", "flops")] = Field(
        "tokens", description="tokens or flops"
    )
    primary: list[Text] = Field(default_factory=list, description="a list of metrics, such as [bpb.web]")
    not_worse: dict[str, Margin] = Field(
        default_factory=dict,
        description="a mapping metric: margin that an arm may lose, such as {base.average: 0.5pp}; a plain number is "
        "in the metric's own unit",
    )
    report_also: Annotated[Literal["tokens", "flops"], choice("tokens", "flops")] | None = Field(
        None, description="tokens or flops, by which the report shows differences divided as well"
    )
    allow: dict[str, list[Text]] = Field(default_factory=dict, description="a mapping arm: [lint codes]")

    @field_serializer("not_worse")
    def _margins(self, margins: dict[str, units.Margin]) -> dict[str, float]:
        """In the metric's own unit, as plan.json keeps them."""
        return {metric: margin.value for metric, margin in margins.items()}
