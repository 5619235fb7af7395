"""`tokens: {flops_of: ARM}`: a stage as long as an arm's whole path at equal compute needs it to be.

The cost of a token follows from the model and from the context, so lengths are solved when the model is known. Until
then such an arm has the length of the study's own stage and is named as unsolved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from harness.study.axes import Change
from harness.study.errors import Mistake, nearest
from harness.study.includes import change
from harness.study.treatment import Stage, Treatment

Cost = Callable[[int], int]  # context length → floating-point operations per trained token


@dataclass(frozen=True, slots=True)
class Asked:
    """A stage of an arm whose length is to be solved: its whole path shall cost what `arm`'s costs."""

    stage: str
    arm: str

    @property
    def path(self) -> tuple[str, ...]:
        return ("stages", self.stage, "tokens")


def may_ask(changes: tuple[Change, ...]) -> bool:
    """Whether any of an arm's changes can hold a `flops_of`: a quick look, for studies of ten thousand arms."""
    return any(one.path[0] == "stages" and isinstance(one.value, Mapping) for one in changes)


def asked(document: Mapping[str, Any]) -> Asked | None:
    """The stage of an arm's document that says `flops_of`. Raises Mistake where that cannot be solved."""
    found = [
        Asked(name, stage["tokens"]["flops_of"])
        for name, stage in document["stages"].items()
        if isinstance(stage.get("tokens"), Mapping)
    ]
    if not found:
        return None
    if len(found) > 1:
        message = (
            f"`flops_of` stands in `{found[0].stage}`, too, and one sum has one unknown; expected one stage with it"
        )
        raise Mistake(found[1].path, message)
    if "total" in document:
        message = "`flops_of` solves for the length, which `total` holds fixed; expected one of the two"
        raise Mistake(found[0].path, message)
    return found[0]


def with_length(document: Mapping[str, Any], asked: Asked, tokens: int) -> Mapping[str, Any]:
    """The document with a count where `flops_of` stood; rounded to whole batches when it is resolved."""
    return change(document, asked.path, f"~{tokens}")


def target(asked: Asked, arms: Mapping[str, Treatment], unsolved: Mapping[str, Asked]) -> Treatment:
    """The treatment whose cost is to be met. Raises Mistake for an arm that is not there or is itself to be solved."""
    if asked.arm in unsolved:
        message = f"`{asked.arm}` is itself solved by `flops_of`; expected an arm with a length of its own"
        raise Mistake(asked.path, message)
    if asked.arm not in arms:
        raise Mistake(asked.path, f"there is no arm `{asked.arm}`; {nearest(asked.arm, arms)}")
    return arms[asked.arm]


def solved(asked: Asked, own: Treatment, other: Treatment, cost: Cost) -> int:
    """Tokens of the stage, whole batches, with which `own` costs what `other` costs, to the nearest batch.

    Raises Mistake where the rest of the path alone costs as much.
    """
    stage = next(stage for stage in own.stages if stage.name == asked.stage)
    left = path_flops(other, cost) - path_flops(own, cost) + _flops(stage, cost)
    batches = math.floor(Fraction(left, stage.batch_tokens * cost(stage.context.length)) + Fraction(1, 2))
    if batches < 1:
        message = f"the other stages alone cost as much as `{asked.arm}`; expected an arm that costs more"
        raise Mistake(asked.path, message)
    return batches * stage.batch_tokens


def path_flops(treatment: Treatment, cost: Cost) -> int:
    """Floating-point operations of a whole path."""
    return sum(_flops(stage, cost) for stage in treatment.stages)


def _flops(stage: Stage, cost: Cost) -> int:
    return stage.tokens * cost(stage.context.length)


def note(name: str, asked: Asked, own: Treatment, other: Treatment, cost: Cost) -> str:
    """What was solved, in a line."""
    stage = next(stage for stage in own.stages if stage.name == asked.stage)
    batches = stage.tokens // stage.batch_tokens
    return (
        f"{name}: `{asked.stage}` at the compute of {asked.arm} is {stage.tokens:,} tokens ({batches:,} batches of "
        f"{stage.batch_tokens:,}): {path_flops(own, cost):.4g} FLOPs, {asked.arm} {path_flops(other, cost):.4g}"
    )
