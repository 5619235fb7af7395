"""Plain values that many blocks hold, and which of them may be `null`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.study.units import HIGHEST_RATE, LARGEST

NULLABLE = frozenset(
    {"clip", "ema", "skip_spikes", "limit", "checkpoint_every"}
)  # keys for which `null` has a meaning: none

Positive = Annotated[float, Field(gt=0)]
Negative = Annotated[float, Field(lt=0)]
Unsigned = Annotated[float, Field(ge=0)]
Fraction01Open = Annotated[float, Field(gt=0, lt=1)]
Fraction01 = Annotated[float, Field(ge=0, lt=1)]
Peak = Annotated[float, Field(gt=0, le=HIGHEST_RATE)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST)]
Several = Annotated[int, Field(ge=2, le=LARGEST)]
Seed = CountOrNone
Seeds = Annotated[list[Seed], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
