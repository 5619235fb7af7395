"""What a stage trains with: context, schedule, optimizer, mixture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.study.blocks import (
    MAPPING,
    TEXT,
    TEXT_OR_MAPPING,
    Block,
    RateOrTimes,
    Share,
    Size,
    Start,
    TokensOrNone,
    TokensOrRest,
    Zero,
    choice,
)
from harness.study.schema.scalars import Fraction01, Positive, Unsigned

Shape = Annotated[
    Literal["constant", "linear", "cosine", "1-sqrt"],
    choice(
        *("constant", "linear", "cosine", "1-sqrt"),
        later=("exponential", "1-square", "inverse-sqrt", "power", "multi-step"),
    ),
]
RopeType = Annotated[Literal["default"], choice("default", later=("linear", "yarn", "llama3", "dynamic"))]


class RopeSpec(Block):
    type: RopeType | None = Field(None, description="default (plain rotary embedding with the given theta)")
    theta: Positive | None = Field(None, description="the base of the rotary frequencies, such as 1.0e+6")


BaseRope = Annotated[Literal["base"], choice("base"), TEXT]


class ContextSpec(Block):
    length: Size | None = Field(None, description="positions per row, such as 2048 or 2^11")
    rope: Annotated[BaseRope | Annotated[RopeSpec, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="base (as the base model has it) or {type: default, theta: 1.0e+6}"
    )
    documents: Annotated[Literal["masked", "joined"], choice("masked", "joined")] | None = Field(
        None, description="masked (no attention between the documents of a row) or joined"
    )
    packing: Annotated[Literal["concat"], choice("concat", later=("best-fit",))] | None = Field(
        None, description="concat (documents one after the other, cut at the row's end)"
    )


class LrSpec(Block):
    shape: Shape | None = Field(None, description="one of constant, linear, cosine, 1-sqrt")
    from_: Start | None = Field(
        None,
        alias="from",
        description="the rate where the shape starts: a number, 0.1x (times optimizer.lr) or base (as base.lr)",
    )
    to: RateOrTimes | None = Field(
        None, description="the rate where the shape ends: a number or 0.1x (times optimizer.lr)"
    )
    warmup: TokensOrNone | None = Field(None, description="tokens of linear warm-up from 0, such as ~50M")


class OptimizerSpec(Block):
    name: Annotated[Literal["adamw"], choice("adamw")] | None = Field(None, description="adamw")
    lr: Positive | None = Field(None, description="the peak learning rate, such as 3e-4")
    betas: Annotated[list[Fraction01], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two numbers from 0 to below 1, such as [0.9, 0.95]"
    )
    eps: Positive | None = Field(None, description="a positive number, such as 1e-8")
    weight_decay: Unsigned | None = Field(None, description="a number from 0, such as 0.1")
    clip: Positive | None = Field(None, description="the largest gradient norm, or null for no clipping")
    z_loss: Zero = Field(0.0, description="0")


class TrainSpec(Block):
    """What every stage inherits."""

    batch_tokens: Size | None = Field(None, description="tokens per optimizer step, such as 2^19")
    mixture: dict[str, Share] | None = Field(None, description="a mapping source: share, shares summing to 1")
    context: ContextSpec | None = Field(None, description="a mapping of length, rope, documents, packing")
    lr: LrSpec | None = Field(None, description="a mapping of shape, from, to, warmup")
    precision: Annotated[Literal["fp32", "bf16-mixed"], choice("fp32", "bf16-mixed")] | None = Field(
        None, description="fp32 or bf16-mixed"
    )
    optimizer: OptimizerSpec | None = Field(None, description="a mapping of name, lr, betas, eps, weight_decay, clip")


class StageSpec(TrainSpec):
    tokens: TokensOrRest | None = Field(None, description="tokens of the stage, such as ~1B, or rest")
