"""Learning-rate schedules as declared: what belongs together is checked, `0.1x` and `~` become numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from harness.study.errors import Mistake
from harness.study.lengths import Lengths
from harness.study.paths import Path
from harness.study.schema import description_of
from harness.study.treatment import OPEN_SHAPES, Base, LearningRate, Shape
from harness.study.units import (
    Rate,
    TokenCount,
    parse_rate,
    parse_share,
    parse_start,
    parse_tokens,
    parse_warmup_start,
)

PREVIOUS = "previous"
SHAPES: tuple[str, ...] = get_args(Shape)
# What each shape takes besides `from`, `warmup` and `warmup_from`; `to` and no default means that it must be there.
TAKES: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("to",),
    "cosine": ("to",),
    "exponential": ("to",),
    "1-sqrt": ("to",),
    "1-square": ("to",),
    "inverse-sqrt": (),
    "power": ("exponent",),
    "multi-step": ("milestones", "factors"),
}
EXPONENT = -0.51  # Power scheduler, 2408.13359
MILESTONES, FACTORS = (0.8, 0.9), (0.316, 0.1)  # DeepSeek LLM, 2401.02954, section 2.3


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule whose rates and lengths still depend on the stage. milestones: fractions of the schedule."""

    shape: Shape
    start: Rate | Literal["base"] | None
    end: Rate | None
    warmup: TokenCount | None
    warmup_from: Rate | Literal["base", "previous"] | None = None
    exponent: float | None = None
    milestones: tuple[Fraction, ...] = ()
    factors: tuple[float, ...] = ()


def read_schedule(block: Mapping[str, Any], path: Path) -> Declared:
    """A schedule block, complete, with nothing that its shape does not take. Raises Mistake."""
    if "shape" not in block:
        raise Mistake((*path, "shape"), f"is missing; expected {description_of((*path, 'shape'))}")
    shape = block["shape"]
    for key in ("to", "exponent", "milestones", "factors"):
        if key in block and key not in TAKES[shape]:
            raise Mistake((*path, key), _not_taken(shape, key))
    if "to" in TAKES[shape] and "to" not in block:
        raise Mistake((*path, "to"), f"is missing for the shape {shape}; expected {description_of((*path, 'to'))}")
    if "warmup_from" in block and parse_tokens(block.get("warmup", 0)).value == 0:
        raise Mistake((*path, "warmup_from"), "starts a warm-up, but there is none; expected `warmup` beside it")
    end = parse_rate(block["to"]) if "to" in block else None
    if shape == "exponential" and end is not None and end.value == 0:
        message = "an exponential decay never reaches 0; expected a rate above 0, such as 0.01x, or another shape"
        raise Mistake((*path, "to"), message)
    milestones, factors = _read_steps(block, path) if shape == "multi-step" else ((), ())
    return Declared(
        shape=shape,
        start=parse_start(block["from"]) if "from" in block else None,
        end=end,
        warmup=parse_tokens(block["warmup"]) if "warmup" in block else None,
        warmup_from=parse_warmup_start(block["warmup_from"]) if "warmup_from" in block else None,
        exponent=float(block.get("exponent", EXPONENT)) if shape == "power" else None,
        milestones=milestones,
        factors=factors,
    )


def _not_taken(shape: str, key: str) -> str:
    with_it = [name for name, taken in TAKES.items() if key in taken]
    said = {
        "constant": "a constant rate goes nowhere" if key == "to" else "a constant rate",
        "inverse-sqrt": "an inverse-sqrt decay has no end" if key == "to" else "an inverse-sqrt decay",
        "power": "a power decay has no end" if key == "to" else "a power decay",
        "multi-step": "a multi-step schedule ends at its last factor" if key == "to" else "a multi-step schedule",
    }.get(shape, f"the shape {shape}")
    said = said if key == "to" else f"{said} takes no `{key}`"
    one = "the shape" if len(with_it) == 1 else "one of the shapes"
    return f"{said}; expected no `{key}`, or {one} {', '.join(with_it)}"


def _read_steps(block: Mapping[str, Any], path: Path) -> tuple[tuple[Fraction, ...], tuple[float, ...]]:
    for key, other in (("milestones", "factors"), ("factors", "milestones")):
        if key in block and other not in block:
            message = f"is missing beside `{key}`; expected both, or neither (then {_DEEPSEEK})"
            raise Mistake((*path, other), message)
    milestones = tuple(parse_share(value) for value in block.get("milestones", MILESTONES))
    factors = tuple(float(value) for value in block.get("factors", FACTORS))
    for index, milestone in enumerate(milestones):
        if not (milestones[index - 1] if index else 0) < milestone < 1:
            message = f"{block['milestones'][index]} is out of order; expected fractions of the schedule that rise"
            raise Mistake((*path, "milestones", index), f"{message} between 0 and 1, such as [0.8, 0.9]")
    if len(milestones) != len(factors):
        message = f"{len(factors)} for {len(milestones)} milestones; expected one for each"
        raise Mistake((*path, "factors"), message)
    return milestones, factors


_DEEPSEEK = "milestones 0.8 and 0.9 with factors 0.316 and 0.1"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a schedule's numbers depend on.

    peak: optimizer.lr. tokens, batch: of the stage. base_lr: the rate at which the base was left, None when unknown.
    first: whether training starts here. ended: the rate at which the stage before ended, None for its constant rate.
    seen: tokens that the base was trained on, 0 from scratch, None when unknown. stages: (tokens, batch) of the stages
    that the schedule runs over, when they are several.
    """

    path: Path
    peak: float
    tokens: int
    batch: int
    base_lr: float | None
    first: bool = True
    ended: float | None = None
    seen: int | None = 0
    stages: tuple[tuple[int, int], ...] = ()


def resolve_schedule(lr: Declared, setting: Setting, lengths: Lengths) -> LearningRate:
    """The schedule of one stage, its warm-up in whole batches. Raises Mistake for what does not fit the setting."""
    path = setting.path
    if lr.start == "base" and not setting.first:
        message = "is `base`, but only the first stage starts where the base was left; expected a rate"
        raise Mistake((*path, "from"), message)
    if lr.warmup_from == "base" and not setting.first:
        message = "is `base`, but only the first stage starts where the base was left; expected a rate, or previous"
        raise Mistake((*path, "warmup_from"), message)
    warmup = lengths.fit(lr.warmup, setting.batch, (*path, "warmup"), least=0) if lr.warmup else 0
    return _resolved(lr, setting, warmup)


def resolve_whole(
    lr: Declared, peak: float, stages: Sequence[tuple[str, int, int]], base: Base, lengths: Lengths
) -> LearningRate:
    """One schedule over all stages, given as (name, tokens, batch): its warm-up ends on a batch of some stage."""
    total = sum(tokens for _, tokens, _ in stages)
    warmup = _whole_warmup(lr.warmup, stages, lengths) if lr.warmup else 0
    spans = tuple((tokens, batch) for _, tokens, batch in stages)
    return _resolved(lr, Setting(("lr",), peak, total, stages[0][2], base.lr, seen=seen(base), stages=spans), warmup)


def seen(base: Base) -> int | None:
    """Tokens that the weights of `base` were trained on: none from scratch, None where that is not declared."""
    return 0 if base.from_scratch else base.tokens_seen


def _resolved(lr: Declared, setting: Setting, warmup: int) -> LearningRate:
    _check_warmup(lr, warmup, setting.tokens, setting.path)
    for key, value in (("from", lr.start), ("warmup_from", lr.warmup_from)):
        if value == "base" and setting.base_lr is None:
            message = "is `base`, but `base.lr` is missing; expected base.lr or another rate"
            raise Mistake((*setting.path, key), message)
    if lr.warmup_from == PREVIOUS and setting.first:
        message = "is `previous`, but no stage comes before this one; expected a rate, or base"
        raise Mistake((*setting.path, "warmup_from"), message)
    if lr.warmup_from is not None and warmup == setting.batch:
        message = f"is never the rate: a warm-up of one batch ({warmup:,} tokens) has one update, at its end"
        raise Mistake((*setting.path, "warmup_from"), f"{message}; expected a longer `warmup`, or none of the two")
    if lr.shape in OPEN_SHAPES:
        _check_clock(lr.shape, setting, warmup)
    resolved = LearningRate(
        shape=lr.shape,
        start=lr.start.resolve(setting.peak) if isinstance(lr.start, Rate) else lr.start,
        end=lr.end.resolve(setting.peak) if lr.end else None,
        warmup=warmup,
        warmup_from=lr.warmup_from.resolve(setting.peak) if isinstance(lr.warmup_from, Rate) else lr.warmup_from,
        exponent=lr.exponent,
        milestones=_whole_milestones(lr, setting, warmup),
        factors=lr.factors,
    )
    _check_it_trains(resolved, setting)
    return resolved


def _check_clock(shape: str, setting: Setting, warmup: int) -> None:
    """An open-ended decay counts all tokens of training: their number must be known, and above 0 where it starts."""
    if setting.seen is None:
        message = f"{shape} goes on from the base's tokens; expected `base.tokens_seen` beside it, or another shape"
        raise Mistake((*setting.path, "shape"), message)
    if setting.first and setting.seen == 0 and warmup == 0:
        message = f"is missing: from scratch {shape} decays from the warm-up's end; expected one, such as ~50M"
        raise Mistake((*setting.path, "warmup"), message)


def _whole_milestones(lr: Declared, setting: Setting, warmup: int) -> tuple[int, ...]:
    """Milestones in tokens from the start of the schedule, each at the nearest end of a batch."""
    whole: list[int] = []
    for index, fraction in enumerate(lr.milestones):
        at = _nearest_batch(fraction * setting.tokens, setting.stages or ((setting.tokens, setting.batch),))
        least, what = (whole[-1], "the one before it") if whole else (warmup, "the warm-up")
        if not least < at < setting.tokens:
            beside = f"after {what} ({least:,})" if at <= least else f"before the end ({setting.tokens:,})"
            message = f"{float(fraction):g} is token {at:,}, no batch {beside}"
            raise Mistake((*setting.path, "milestones", index), f"{message}; expected milestones further apart")
        whole.append(at)
    return tuple(whole)


def _nearest_batch(position: Fraction, stages: Sequence[tuple[int, int]]) -> int:
    """The end of a batch nearest to `position` (halves up) in the stage that holds it."""
    start = 0
    for tokens, batch in stages:
        if position <= start + tokens:
            return start + math.floor((position - start) / batch + Fraction(1, 2)) * batch
        start += tokens
    raise ValueError(f"{position} lies behind the last stage")


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
    if lr.shape == "exponential":
        message = f"{said}, from which an exponential goes nowhere; expected a rate above 0, or another shape"
        raise Mistake((*setting.path, "from"), message)
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
