"""Findings about the rate: an end that is open, a start without warm-up, a rise after an anneal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.plan.lint.codes import Lint
from harness.plan.schedule import Piece, end_rate, rate
from harness.study.optimizers import begins_cold
from harness.study.treatment import OPEN_SHAPES, Arm

# A rate that rises to this many times the rate at which training was left has to be warmed up anew: what an anneal
# gained is lost first (Ibrahim et al., 2403.08763; Gupta et al., 2308.04014).
REWARM = 10


@dataclass(frozen=True)
class Path:
    """The schedule of an arm's whole path. pieces: in its order, each with the stage that it begins in.

    ends: the token at which each is left.
    """

    pieces: Sequence[tuple[str, Piece]]
    tokens: int
    ends: Sequence[int]

    @property
    def first(self) -> Piece:
        return self.pieces[0][1]

    @property
    def last(self) -> Piece:
        return self.pieces[-1][1]


def schedule_open(arm: Arm, path: Path) -> Iterator[Lint]:
    """The end is compared: the last piece must be a decay that reaches its `to`, from a rate above it."""
    last = path.last
    if last["shape"] in OPEN_SHAPES:
        value = end_rate(last, path.tokens)
        said = f"ends inside {last['shape']}, which has no end, at a rate of {value:g}: {_NO_RESULT}"
        yield Lint("error", "schedule-open", arm.name, said)
    elif last["shape"] == "constant":
        if last["value"] > 0 and not _stepped_down(arm):
            said = f"ends at a constant rate of {last['value']:g}: {_NO_RESULT}"
            yield Lint("error", "schedule-open", arm.name, said)
    elif last.get("at") == "end":
        yield Lint("error", "schedule-open", arm.name, f"ends inside a warm-up, at a rate of {end_rate(last):g}")
    elif end_rate(last) > rate(last, last["start"], 1):
        begin = rate(last, last["start"], 1)
        said = f"its last stage raises the rate from {begin:g} to {end_rate(last):g}"
        yield Lint("error", "schedule-open", arm.name, said)
    elif last["end"] > path.tokens:
        said = (
            f"its decay to {end_rate(last):g} ends at token {last['end']:,}, and training at token {path.tokens:,}: "
            f"the rate is still {rate(last, path.tokens, 1):g}"
        )
        yield Lint("error", "schedule-open", arm.name, said)


_NO_RESULT = "the score of an open schedule is not a result"


def _stepped_down(arm: Arm) -> bool:
    """Whether a multi-step schedule is on its last step, which is its end, as `to` is that of a decay."""
    lr = arm.treatment.lr or arm.treatment.stages[-1].lr
    return lr is not None and lr.shape == "multi-step" and lr.factors[-1] < 1


FULL_SIZE_AT_FIRST = ("adamw", "muon", "lion")


def cold_without_warmup(arm: Arm, path: Path) -> Iterator[Lint]:
    """Adam's, Muon's and Lion's first steps with empty moments are of full size whatever the gradient; sgd's are not.

    At the start, and wherever a stage empties the optimizer's state or another optimizer takes over.
    """
    stages, start = arm.treatment.stages, 0
    cold = begins_cold(stages)
    cold[0] = arm.treatment.base.optimizer == "cold"
    for stage, is_cold in zip(stages, cold, strict=True):
        if is_cold and stage.optimizer.name in FULL_SIZE_AT_FIRST:
            piece = next(piece for (_, piece), end in zip(path.pieces, path.ends, strict=True) if start < end)
            begins = rate(piece, start, 1)
            # A warm-up of one batch has its end as its only rate.
            warms_up = (
                piece.get("at") == "end" and piece["start"] == start and piece["end"] > start + stage.batch_tokens
            )
            if not warms_up and begins > 0.1 * stage.optimizer.lr:
                what = f"`{stage.name}` begins" if start else "starts"
                message = f"{what} with a cold optimizer at a rate of {begins:g} without warm-up"
                yield Lint("warning", "cold-without-warmup", arm.name, message)
        start += stage.tokens


def rewarms_annealed_base(arm: Arm, path: Path) -> Iterator[Lint]:
    """The rate at which the base, or a stage before, was left, against the highest one that comes after it.

    A base whose rate is not declared, and one from scratch, were left at no rate. A warm-up counts by its top, wherever
    it begins. Said once an arm, of the first rise.
    """
    left, where = arm.treatment.base.lr, "the base"
    if arm.treatment.base.from_scratch:
        left = None
    before: Piece | None = None
    for (stage, piece), end in zip(path.pieces, path.ends, strict=True):
        if piece == before:
            continue  # one schedule goes on through the next stage
        before, top = piece, _top(piece)
        if left is not None and top > 0 and top >= REWARM * left:
            times = f", {top / left:.3g} times as high" if left else ""
            message = (
                f"{where} was left at a rate of {left:g} and `{stage}` takes it up to {top:g}{times}: the loss rises "
                "before it falls again (2308.04014), and part of the budget pays for that"
            )
            yield Lint("warning", "rewarms-annealed-base", arm.name, message)
            return
        left, where = end_rate(piece, end), f"`{stage}`"


def _top(piece: Piece) -> float:
    if piece["shape"] == "constant":
        return float(piece["value"])
    if piece["shape"] in OPEN_SHAPES:
        return float(piece["from"])
    return max(rate(piece, piece["start"], 1), end_rate(piece))
