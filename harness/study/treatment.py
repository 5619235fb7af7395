"""What an arm does, resolved: exact integers, exact shares, no defaults left open.

These records are what planning, training and the comparability lint read. They are frozen and shared between arms:
two arms whose stage is the same hold the same `Stage` object, so derived values can be kept per object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

Shape = Literal[
    "constant", "linear", "cosine", "exponential", "1-sqrt", "1-square", "inverse-sqrt", "power", "multi-step"
]
OPEN_SHAPES = ("inverse-sqrt", "power")  # decays without an end: trunks from which others branch


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding, derived from the base model's.

    type: `base` is as the base model has it, `default` plain rotary with `theta`; the others stretch `original`
    positions (None: the base's) by `factor` (`auto`: context length / original). theta: None for the base's.
    parameters: what a type has besides, by name, where declared.
    """

    type: Literal["base", "default", "linear", "ntk", "dynamic", "yarn", "llama3"] = "base"
    theta: float | None = None
    factor: float | Literal["auto"] | None = None
    original: int | None = None
    parameters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """How documents become rows of `length` positions."""

    length: int
    documents: Literal["masked", "joined"] = "masked"
    packing: Literal["concat", "best-fit"] = "concat"
    rope: Rope = Rope()


OptimizerName = Literal["adamw", "lion", "muon", "sgd"]


@dataclass(frozen=True, slots=True)
class SkipSpikes:
    """An update is left out whose loss or gradient norm is more than `sigma` standard deviations above the mean of the
    last `window` updates."""

    window: int = 128
    sigma: float = 6.0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What updates the weights. A parameter that the optimizer does not take is None.

    clip: the largest global gradient norm, None for no clipping. z_loss: weight of the squared log normalizer in the
    loss, 0 for none. decay_embeddings: whether weight decay acts on embeddings. ema: decay of the moving average of the
    weights that is kept beside them, None for none. label_smoothing: share of the target that is spread over the
    vocabulary. state: whether the stage goes on with the state of the one before, as declared; None: carried, unless
    another optimizer takes over. skip_spikes: None for no update left out.
    """

    name: OptimizerName
    lr: float
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float
    clip: float | None
    momentum: float | None = None
    z_loss: float = 0.0
    decay_embeddings: bool = True
    ema: float | None = None
    label_smoothing: float = 0.0
    state: Literal["carried", "cold"] | None = None
    skip_spikes: SkipSpikes | None = None


@dataclass(frozen=True, slots=True)
class LearningRate:
    """A schedule as declared. Rates are absolute here (`0.1x` is resolved); lengths are tokens.

    start: the rate at which the shape begins (and the warm-up ends); None: where the previous stage ended, for the
           first stage `optimizer.lr`; "base": the rate at which the base was left (`base.lr`).
    end: the rate that the shape reaches at its last token; None for shapes that take no `to`.
    warmup: tokens of linear warm-up in front of the shape, inside the stage; 0 for none.
    warmup_from: the rate at which the warm-up begins, None for 0; "previous": where the stage before ended.
    exponent: of `power`, below 0. milestones, factors: of `multi-step`; tokens from the start of the schedule, in whole
           batches and ascending, and what the rate at the shape's beginning is multiplied with from there on.
    """

    shape: Shape
    start: float | Literal["base"] | None
    end: float | None
    warmup: int
    warmup_from: float | Literal["base", "previous"] | None = None
    exponent: float | None = None
    milestones: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A named part of training. `tokens` and `lr.warmup` are whole batches."""

    name: str
    tokens: int
    batch_tokens: int
    mixture: tuple[tuple[str, Fraction], ...]  # in the order of the study's sources; shares sum to 1; zeros dropped
    context: Context
    precision: Literal["fp32", "bf16-mixed"]
    optimizer: Optimizer
    lr: LearningRate | None  # None when one schedule runs over all stages


@dataclass(frozen=True, slots=True)
class Base:
    """Where training starts. Declared, not resolved: identities come from the base's manifest.

    model: {"config": {...}} for a model from scratch, {"path": "..."} for a folder, a hub id or a .gguf file
           ("revision" beside it when given).
    tokenizer: {"of": "model"}, {"path": "..."} or {"bpe": {"vocab": n, "sources": [...]}}.
    """

    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    optimizer: Literal["cold", "carried"]
    lr: float | None
    tokens_seen: int | None = None  # tokens that the base was trained on, where declared

    @property
    def from_scratch(self) -> bool:
        return "config" in self.model


@dataclass(frozen=True, slots=True)
class Treatment:
    """All the science of an arm but its seeds. `lr` is set when one schedule runs over all stages."""

    base: Base
    stages: tuple[Stage, ...]
    lr: LearningRate | None = None

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Arm:
    """One treatment under one name. `changes`: what it declares against `default`, path → value as written.

    levels: the same as the user calls it: an alias, a path or the sources of a mixture axis → level (`{"math": 0.3}`).
    varied: the sources whose shares it declares to vary.
    """

    name: str
    changes: Mapping[str, Any]
    treatment: Treatment
    levels: Mapping[str, Any] = field(default_factory=dict)
    varied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SeedSet:
    """One replicate. `name` is built from the seeds that the study declares (`d1`, `i1-d2`).

    trunk_data: the data seed of the stages before `from_stage` (None: `data` holds from token 0).
    pooled: the replicates that one model was merged of, none for a replicate itself.
    """

    name: str
    init: int
    data: int
    from_stage: str | None = None
    pooled: tuple[SeedSet, ...] = ()

    @property
    def declared(self) -> dict[str, Any]:
        if self.pooled:
            return {"init": [one.init for one in self.pooled], "data": [one.data for one in self.pooled]}
        return {"init": self.init, "data": self.data}


LONGEST_POOL = 60  # characters of the name of pooled replicates


def pooled(seeds: Sequence[SeedSet]) -> SeedSet:
    """The replicates of one model that was merged over them: `d1+d2+d3`, or `d1+19` for the first and 19 more."""
    name = "+".join(one.name for one in seeds)
    if len(name) > LONGEST_POOL:
        name = f"{seeds[0].name}+{len(seeds) - 1}"
    return SeedSet(name, seeds[0].init, seeds[0].data, seeds[0].from_stage, tuple(seeds))


TRUNK_DATA_SEED = 0  # data seed of the stages that come before `seeds.from`
