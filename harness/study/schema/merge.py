"""Arms that are made of others' weights and trained nowhere."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.study.blocks import Block, Tokens, choice
from harness.study.schema.scalars import Fraction01, Positive, Text

Decay = Literal["linear", "cosine", "exponential", "1-sqrt", "1-square"]
DECAYS = ("linear", "cosine", "exponential", "1-sqrt", "1-square")
MergeOf = Literal["seeds", "arms", "checkpoints"]


class MergeSpec(Block):
    """An arm whose weights are a weighted mean of others': of the runs of an arm over its seeds, of several arms seed
    by seed, or of checkpoints at the end of an arm's path at a constant rate (WSM). It is evaluated and reported under
    its name."""

    refused: ClassVar[dict[str, str]] = {
        "ema": "a moving average is kept while training; expected `optimizer.ema`, and `ema` in eval.at",
    }

    of: Annotated[MergeOf, choice("seeds", "arms", "checkpoints")] = Field(
        description="seeds (one model of all runs of `arm`), arms (of `arms`, seed by seed) or checkpoints (of `arm`, "
        "seed by seed)"
    )
    arm: Text | None = Field(None, description="the name of an arm that is trained (seeds, checkpoints)")
    arms: Annotated[list[Text], Field(min_length=2)] | None = Field(
        None, description="a list of at least two arms that are trained (arms)"
    )
    weights: Annotated[list[Positive], Field(min_length=2)] | None = Field(
        None,
        description="a list of positive numbers, one a part, divided by their sum; equal without it (for checkpoints "
        "the first is the oldest, and `decay` may stand in its place)",
    )
    over: Tokens | None = Field(
        None, description="tokens at the end of the path that the checkpoints cover, such as ~2B (checkpoints)"
    )
    every: Tokens | None = Field(None, description="tokens between two checkpoints, such as ~0.25B (checkpoints)")
    decay: Annotated[Decay, choice(*DECAYS)] | None = Field(
        None,
        description=f"the decay whose updates the mean stands for, one of {', '.join(DECAYS)} (checkpoints)",
    )
    to: Fraction01 | None = Field(
        None,
        description="what the decay leaves of the rate, from 0 to below 1: 0 without it, above 0 for exponential "
        "(checkpoints)",
    )
