"""Learning-rate schedules as declared: what belongs together is checked, `0.1x` and `~` become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.study.errors import Mistake
from harness.study.lengths import Lengths
from harness.study.paths import Path
from harness.study.schema import description_of
from harness.study.treatment import LearningRate, Shape
from harness.study.units import Rate, TokenCount, parse_rate, parse_start, parse_tokens


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule whose rates and lengths still depend on the stage."""

    shape: Shape
    start: Rate | Literal["base"] | None
    end: Rate | None
    warmup: TokenCount | None


def read_schedule(block: Mapping[str, Any], path: Path) -> Declared:
    """A schedule block, complete: `constant` has no `to`, every other shape has one. Raises Mistake."""
    if "shape" not in block:
        raise Mistake((*path, "shape"), f"is missing; expected {description_of((*path, 'shape'))}")
    shape = block["shape"]
    if shape == "constant" and "to" in block:
        message = "a constant rate goes nowhere; expected no `to`, or one of the shapes linear, cosine, 1-sqrt"
        raise Mistake((*path, "to"), message)
    if shape != "constant" and "to" not in block:
        raise Mistake((*path, "to"), f"is missing for the shape {shape}; expected {description_of((*path, 'to'))}")
    return Declared(
        shape=shape,
        start=parse_start(block["from"]) if "from" in block else None,
        end=parse_rate(block["to"]) if "to" in block else None,
        warmup=parse_tokens(block["warmup"]) if "warmup" in block else None,
    )


def resolve_schedule(
    lr: Declared,
    path: Path,
    peak: float,
    tokens: int,
    batch: int,
    base_lr: float | None,
    first: bool,
    ended: float | None,
    lengths: Lengths,
) -> LearningRate:
    """The schedule of one stage of `tokens`. `peak`: its optimizer.lr; `ended`: where the previous stage's ended."""
    if lr.start == "base" and not first:
        raise Mistake(
            (*path, "from"), "is `base`, but only the first stage starts where the base was left; expected a rate"
        )
    warmup = lengths.fit(lr.warmup, batch, (*path, "warmup"), least=0) if lr.warmup else 0
    _check_warmup(lr, warmup, tokens, path)
    resolved = _rates(lr, path, peak, base_lr, warmup)
    if resolved.start is None and ended == 0 and not first and not resolved.end:
        raise Mistake(
            (*path, "from"),
            "is missing, and the stage before ended at a rate of 0, so this one would not train; expected "
            f"{description_of((*path, 'from'))}",
        )
    return resolved


def resolve_whole(
    lr: Declared, peak: float, stages: Sequence[tuple[str, int, int]], base_lr: float | None, lengths: Lengths
) -> LearningRate:
    """One schedule over all stages, given as (name, tokens, batch): its warm-up ends on a batch of some stage."""
    total = sum(tokens for _, tokens, _ in stages)
    warmup = _whole_warmup(lr.warmup, stages, lengths) if lr.warmup else 0
    _check_warmup(lr, warmup, total, ("lr",))
    return _rates(lr, ("lr",), peak, base_lr, warmup)


def _whole_warmup(count: TokenCount, stages: Sequence[tuple[str, int, int]], lengths: Lengths) -> int:
    start = 0
    for _, tokens, batch in stages:
        if count.value <= start + tokens:
            return lengths.fit(count, batch, ("lr", "warmup"), least=0, start=start)
        start += tokens
    raise Mistake(("lr", "warmup"), f"{count.text} is longer than all stages together, {start:,} tokens")


def _rates(lr: Declared, path: Path, peak: float, base_lr: float | None, warmup: int) -> LearningRate:
    if lr.start == "base" and base_lr is None:
        raise Mistake((*path, "from"), "is `base`, but `base.lr` is missing; expected base.lr or another rate")
    start = lr.start.resolve(peak) if isinstance(lr.start, Rate) else lr.start
    return LearningRate(lr.shape, start, lr.end.resolve(peak) if lr.end else None, warmup)


def _check_warmup(lr: Declared, warmup: int, tokens: int, path: Path) -> None:
    if warmup > tokens or (warmup == tokens and lr.end is not None):
        room = f"{tokens:,} tokens of training" if lr.end is None else f"fewer than the {tokens:,} tokens of training"
        raise Mistake((*path, "warmup"), f"{warmup:,} tokens do not fit; expected at most {room}")
