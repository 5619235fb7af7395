"""The defaults that hold where a key is not written and its field does not say: for the reference, in the user's words.

Each is taken from what applies it, so that the page cannot say another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.study.blocks import Block
from harness.study.checks import PARAMETERS, UNDECLARED_SEEDS
from harness.study.optimizers import DEFAULTS, read_optimizer
from harness.study.resolve import UNWRITTEN, read_context
from harness.study.schedules import EXPONENT, FACTORS, MILESTONES
from harness.study.schema import EvalSpec, SeedsSpec, SourceSpec
from harness.study.schema.base import BaseSpec
from harness.study.schema.evaluation import DEFAULT_PROMPTS
from harness.study.schema.execution import LaunchSpec
from harness.study.schema.training import (
    ContextSpec,
    LrSpec,
    OptimizerSpec,
    SkipSpikesSpec,
    StageSpec,
    TrainSpec,
)
from harness.study.treatment import SkipSpikes


def held(block: type[Block], key: str) -> str | None:
    """The default of a key as Markdown, None where its field says all there is to say."""
    if block is StageSpec and key in TrainSpec.names():
        return f"`train.{key}`"
    return _HELD.get(block, {}).get(key)


def code(value: Any) -> str:
    """A value as it would be written, as code."""
    return f"`{text(value)}`"


def text(value: Any) -> str:
    """A value as it would be written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_each(takers: Mapping[Any, Mapping[str, Any]], key: str) -> str:
    """`value (who, who)` for every value that a key has by default among those that take it."""
    who: dict[str, list[str]] = {}
    for name, taken in takers.items():
        if key in taken:
            who.setdefault(code(taken[key]), []).append(name)
    return (
        next(iter(who)) if len(who) == 1 else ", ".join(f"{value} ({', '.join(names)})" for value, names in who.items())
    )


def _minutes(seconds: int) -> str:
    return f"`{seconds // 60}m`" if seconds % 60 == 0 else f"{seconds} seconds"


_OPTIMIZER = read_optimizer({"lr": 1.0}, ())
_CONTEXT = read_context({"length": 1}, ())
_HELD: Mapping[type[Block], Mapping[str, str]] = {
    BaseSpec: {"tokenizer": "the model's"},
    SourceSpec: {key: _of_each(PARAMETERS, key) for key in ("documents", "seed", "distance")}
    | {"split": "`train`", "text": "`text`", "max_epochs": "no limit"},
    TrainSpec: {"precision": code(UNWRITTEN["precision"])},
    ContextSpec: {
        "rope": code(_CONTEXT.rope.type),
        "documents": code(_CONTEXT.documents),
        "packing": code(_CONTEXT.packing),
    },
    LrSpec: {
        "warmup": "`0`",
        "warmup_from": "`0`",
        "exponent": code(EXPONENT),
        "milestones": code(MILESTONES),
        "factors": code(FACTORS),
    },
    OptimizerSpec: {key: _of_each(DEFAULTS, key) for key in ("betas", "eps", "momentum")}
    | {key: code(getattr(_OPTIMIZER, key)) for key in ("name", "weight_decay", "decay_embeddings", "clip", "z_loss")}
    | {"label_smoothing": code(_OPTIMIZER.label_smoothing), "state": "`carried`", "skip_spikes": "none", "ema": "none"},
    SkipSpikesSpec: {"window": code(SkipSpikes().window), "sigma": code(SkipSpikes().sigma)},
    SeedsSpec: {"init": code(UNDECLARED_SEEDS), "data": code(UNDECLARED_SEEDS)},
    EvalSpec: {
        "max_length": "must be given, unless held-out text is all and `continuations` is 0",
        "continuations": f"{code(DEFAULT_PROMPTS)} with `held_out`, else `0`",
        "limit": "all",
    },
    LaunchSpec: {
        "checkpoint_every": "none",
        "silent_after": _minutes(int(LaunchSpec.model_fields["silent_after"].default)),
    },
}
