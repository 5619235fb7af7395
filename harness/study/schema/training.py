"""What a stage trains with: context, schedule, optimizer, mixture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from harness.study.blocks import (
    MAPPING,
    TEXT,
    TEXT_OR_MAPPING,
    AutoFactor,
    Block,
    RateOrTimes,
    Share,
    Size,
    Start,
    TokensOrNone,
    TokensOrRest,
    WarmupStart,
    choice,
    said,
)
from harness.study.schema.scalars import Fraction01, Fraction01Open, Negative, Peak, Positive, Several, Unsigned

_SHAPES = ("constant", "linear", "cosine", "exponential", "1-sqrt", "1-square", "inverse-sqrt", "power", "multi-step")
Shape = Annotated[
    Literal["constant", "linear", "cosine", "exponential", "1-sqrt", "1-square", "inverse-sqrt", "power", "multi-step"],
    choice(*_SHAPES),
]
OptimizerName = Annotated[Literal["adamw", "lion", "muon", "sgd"], choice("adamw", "lion", "muon", "sgd")]
_ROPES = ("default", "linear", "ntk", "dynamic", "yarn", "llama3")
RopeType = Annotated[Literal["default", "linear", "ntk", "dynamic", "yarn", "llama3"], choice(*_ROPES)]


class RopeSpec(Block):
    """Rotary embedding, always derived from the base's, whatever an earlier stage had: plain with another `theta`
    (default), position interpolation (linear), NTK-aware, dynamic NTK as it is at the stage's length, YaRN, or Llama
    3's bands."""

    type: RopeType | None = Field(None, description=f"one of {', '.join(_ROPES)}")
    theta: Positive | None = Field(
        None, description="the base of the rotary frequencies, such as 1.0e+6 (default: the base model's)"
    )
    factor: AutoFactor | None = Field(
        None,
        description="how many times longer than the base's positions, above 1, or auto (context.length / original; "
        "not for dynamic)",
    )
    original: Size | None = Field(
        None,
        description="positions that are stretched (default: the base model's); linear and ntk take it with "
        "factor: auto alone",
    )
    beta_fast: Positive | None = Field(None, description="yarn: rotations above which nothing is stretched, such as 32")
    beta_slow: Positive | None = Field(None, description="yarn: rotations below which all is stretched, such as 1")
    attention_factor: Positive | None = Field(
        None, description="yarn: scale of the attention logits (default: 0.1 ln(factor) + 1)"
    )
    low_freq_factor: Positive | None = Field(None, description="llama3: the band's lower end, such as 1")
    high_freq_factor: Positive | None = Field(None, description="llama3: the band's upper end, such as 4")


BaseRope = Annotated[Literal["base"], choice("base"), TEXT]


class ContextSpec(Block):
    length: Size | None = Field(None, description="positions per row, such as 2048 or 2^11")
    rope: Annotated[BaseRope | Annotated[RopeSpec, MAPPING], TEXT_OR_MAPPING] | None = Field(
        None, description="base (as the base model has it) or a mapping such as {type: yarn, factor: auto}"
    )
    documents: Annotated[Literal["masked", "joined"], choice("masked", "joined")] | None = Field(
        None, description="masked (no attention between the documents of a row) or joined"
    )
    packing: Annotated[Literal["concat", "best-fit"], choice("concat", "best-fit")] | None = Field(
        None,
        description="concat (documents one after the other, cut at the row's end) or best-fit (whole documents, "
        "padding at the row's end)",
    )


class LrSpec(Block):
    shape: Shape | None = Field(None, description=f"one of {', '.join(_SHAPES)}")
    from_: Start | None = Field(
        None,
        alias="from",
        description="the rate where the shape starts: a number, 0.1x (times optimizer.lr) or base (as base.lr); "
        "without it, where the stage before ended, and optimizer.lr in the first stage",
    )
    to: RateOrTimes | None = Field(
        None, description="the rate where the shape ends: a number or 0.1x (times optimizer.lr)"
    )
    warmup: TokensOrNone | None = Field(
        None, description="tokens of linear warm-up in front of the shape, from 0 or warmup_from, such as ~50M"
    )
    warmup_from: WarmupStart | None = Field(
        None,
        description="the rate where the warm-up starts: a number, 0.1x (times optimizer.lr), base (as base.lr) or "
        "previous (where the stage before ended); 0 without it",
    )
    exponent: Negative | None = Field(None, description="a number below 0, for power: -0.51 without it")
    milestones: Annotated[list[Share], Field(min_length=1)] | None = Field(
        None, description="a list of fractions of the schedule, for multi-step: [0.8, 0.9] without it"
    )
    factors: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        None,
        description="a list of positive numbers, one a milestone, times the rate where the shape starts, for "
        "multi-step: [0.316, 0.1] without it",
    )


class SkipSpikesSpec(Block):
    """Leave out an update whose loss or gradient norm lies far above those of the updates before it."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    window: Several | None = Field(
        None, description="updates whose losses and gradient norms are kept, at least 2, such as 128 (the default)"
    )
    sigma: Positive | None = Field(
        None, description="standard deviations above the window's mean, a positive number such as 6 (the default)"
    )

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if value == {}:  # as the value of an axis it would name its arm after nothing
            raise said("is empty; expected window and sigma, such as {window: 128, sigma: 6}, or null for none")
        return value


class OptimizerSpec(Block):
    name: OptimizerName | None = Field(None, description="one of adamw, lion, muon, sgd")
    lr: Peak | None = Field(None, description="the peak learning rate, above 0, such as 3e-4")
    betas: Annotated[list[Fraction01], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two numbers from 0 to below 1, such as [0.9, 0.95] (adamw, lion, muon)"
    )
    eps: Positive | None = Field(None, description="a positive number, such as 1e-8 (adamw, muon)")
    momentum: Fraction01 | None = Field(None, description="a number from 0 to below 1, such as 0.95 (muon, sgd)")
    weight_decay: Unsigned | None = Field(None, description="a number from 0, such as 0.1")
    decay_embeddings: bool | None = Field(None, description="true, or false for no weight decay on embeddings")
    clip: Positive | None = Field(None, description="the largest gradient norm, or null for no clipping")
    z_loss: Unsigned | None = Field(
        None, description="the weight of the squared log normalizer in the loss, such as 1e-5, or 0 for none"
    )
    label_smoothing: Fraction01 | None = Field(
        None,
        description="the share of the target that is spread evenly over the vocabulary, from 0 (none) to below 1, such "
        "as 0.1",
    )
    state: Annotated[Literal["carried", "cold"], choice("carried", "cold")] | None = Field(
        None,
        description="carried (the stage goes on with the optimizer's state of the stage before, as without it) or cold "
        "(it begins with an empty state); the first stage's is `base.optimizer`",
    )
    skip_spikes: SkipSpikesSpec | None = Field(
        None, description="a mapping such as {window: 128, sigma: 6}, or null for no update left out"
    )
    ema: Fraction01Open | None = Field(
        None,
        description="the decay per update of a moving average of the weights, above 0 and below 1, such as 0.999, or "
        "null for none; `eval.at: [ema]` evaluates it",
    )


class TrainSpec(Block):
    """What every stage inherits."""

    batch_tokens: Size | None = Field(None, description="tokens per optimizer step, such as 2^19")
    mixture: dict[str, Share] | None = Field(None, description="a mapping source: share, shares summing to 1")
    context: ContextSpec | None = Field(None, description="a mapping of length, rope, documents, packing")
    lr: LrSpec | None = Field(None, description="a mapping of shape, from, to, warmup and what the shape takes")
    precision: Annotated[Literal["fp32", "bf16-mixed"], choice("fp32", "bf16-mixed")] | None = Field(
        None, description="fp32 or bf16-mixed"
    )
    optimizer: OptimizerSpec | None = Field(
        None, description="a mapping of name, lr, weight_decay, clip and what the optimizer takes"
    )


class StageSpec(TrainSpec):
    tokens: TokensOrRest | None = Field(
        None, description="tokens of the stage, such as ~1B; rest (what `total` leaves); in an arm {flops_of: ARM}"
    )
