"""`ablate plan --curves`: what each arm's every update will see, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from harness.plan.blend import Blend
from harness.plan.schedule import rate, schedule

if TYPE_CHECKING:
    from harness.study import Study
    from harness.study.treatment import Arm


def header(study: Study) -> list[str]:
    """Column names: arm, step, tokens, lr, context, then declared and drawn share of each source."""
    names = list(study.sources)
    return ["arm", "step", "tokens", "lr", "context", *[f"share.{n}" for n in names], *[f"drawn.{n}" for n in names]]


def rows(study: Study, arms: Sequence[Arm], every: int = 1) -> Iterator[list[Any]]:
    """One row per (arm, update), every `every`th update and each arm's last.

    tokens: before the update; lr: of the update; share: declared; drawn: part of the update's rows.
    """
    for arm in arms:
        yield from _arm_rows(study, arm, every)


def _arm_rows(study: Study, arm: Arm, every: int) -> Iterator[list[Any]]:
    names = list(study.sources)
    pieces = schedule(arm.treatment)
    at = step = 0
    position = 0
    total_steps = sum(stage.tokens // stage.batch_tokens for stage in arm.treatment.stages)
    for stage in arm.treatment.stages:
        shares = dict(stage.mixture)
        used = sorted(shares)  # the loader's order: by name
        blend = Blend([shares[name] for name in used])
        batch_rows = stage.batch_tokens // stage.context.length
        for _ in range(stage.tokens // stage.batch_tokens):
            while pieces[at][1] <= position:
                at += 1
            drawn = blend.take(batch_rows)
            if step % every == 0 or step == total_steps - 1:
                yield [
                    arm.name,
                    step,
                    position,
                    rate(pieces[at][2], position, stage.batch_tokens),
                    stage.context.length,
                    *[float(shares.get(name, Fraction(0))) for name in names],
                    *[drawn.count(used.index(n)) / batch_rows if n in used else 0.0 for n in names],
                ]
            step += 1
            position += stage.batch_tokens
