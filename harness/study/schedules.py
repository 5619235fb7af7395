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


@dataclass(frozen=True, slots=True)
class Setting:
    """What a schedule's numbers depend on.

    peak: optimizer.lr. tokens, batch: of the stage. base_lr: the rate at which the base was left, None when unknown.
    first: whether training starts here. ended: the rate at which the stage before ended, None for its constant rate.
    """

    path: Path
    peak: float
    tokens: int
    batch: int
    base_lr: float | None
    first: bool = True
    ended: float | None = None


def resolve_schedule(lr: Declared, setting: Setting, lengths: Lengths) -> LearningRate:
    """The schedule of one stage, its warm-up in whole batches. Raises Mistake for what does not fit the setting."""
    path = setting.path
    if lr.start == "base" and not setting.first:
        message = "is `base`, but only the first stage starts where the base was left; expected a rate"
        raise Mistake((*path, "from"), message)
    warmup = lengths.fit(lr.warmup, setting.batch, (*path, "warmup"), least=0) if lr.warmup else 0
    return _resolved(lr, setting, warmup)


def resolve_whole(
    lr: Declared, peak: float, stages: Sequence[tuple[str, int, int]], base_lr: float | None, lengths: Lengths
) -> LearningRate:
    """One schedule over all stages, given as (name, tokens, batch): its warm-up ends on a batch of some stage."""
    total = sum(tokens for _, tokens, _ in stages)
    warmup = _whole_warmup(lr.warmup, stages, lengths) if lr.warmup else 0
    return _resolved(lr, Setting(("lr",), peak, total, stages[0][2], base_lr), warmup)


def _resolved(lr: Declared, setting: Setting, warmup: int) -> LearningRate:
    _check_warmup(lr, warmup, setting.tokens, setting.path)
    if lr.start == "base" and setting.base_lr is None:
        message = "is `base`, but `base.lr` is missing; expected base.lr or another rate"
        raise Mistake((*setting.path, "from"), message)
    start = lr.start.resolve(setting.peak) if isinstance(lr.start, Rate) else lr.start
    resolved = LearningRate(lr.shape, start, lr.end.resolve(setting.peak) if lr.end else None, warmup)
    _check_it_trains(resolved, setting)
    return resolved


def _check_it_trains(lr: LearningRate, setting: Setting) -> None:
    """A rate of 0 from beginning to end, or a warm-up to 0, would be accepted and do nothing."""
    if lr.start is None:
        begin = setting.peak if setting.first else setting.ended
        said = "is missing, and the stage before ended at a rate of 0"
    else:
        begin = setting.base_lr if lr.start == "base" else lr.start
        said = "is a rate of 0"
    if begin != 0:
        return
    if not lr.end:
        expected = description_of((*setting.path, "from"))
        raise Mistake((*setting.path, "from"), f"{said}, so nothing would train; expected {expected}")
    if lr.warmup:
        message = "would warm up to a rate of 0, where the shape starts; expected no warm-up, or `from` above 0"
        raise Mistake((*setting.path, "warmup"), message)


def _whole_warmup(count: TokenCount, stages: Sequence[tuple[str, int, int]], lengths: Lengths) -> int:
    start = 0
    for _, tokens, batch in stages:
        if count.value <= start + tokens:
            return lengths.fit(count, batch, ("lr", "warmup"), least=0, start=start)
        start += tokens
    raise Mistake(("lr", "warmup"), f"{count.text} is longer than all stages together; expected at most {start:,}")


def _check_warmup(lr: Declared, warmup: int, tokens: int, path: Path) -> None:
    if warmup > tokens or (warmup == tokens and lr.end is not None):
        room = f"{tokens:,} tokens of training" if lr.end is None else f"fewer than the {tokens:,} tokens of training"
        raise Mistake((*path, "warmup"), f"{warmup:,} tokens do not fit; expected at most {room}")
