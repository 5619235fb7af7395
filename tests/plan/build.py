"""Treatments made by hand, so that the plan's tests need no study file."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from harness.plan.science import Identities
from harness.study.treatment import Arm, Base, Context, LearningRate, Optimizer, SeedSet, Stage, Treatment

BATCH = 512
ADAMW = Optimizer("adamw", 6e-3, (0.9, 0.95), 1e-8, 0.1, 1.0)
SCRATCH = Base({"config": {"model_type": "llama"}}, {"bpe": {"vocab": 256, "sources": ["web"]}}, "cold", None)
IDENTITIES = Identities("w" * 64, "t" * 64, {"web": "1" * 64, "math": "2" * 64}, {})


def mixture(**shares: str) -> tuple[tuple[str, Fraction], ...]:
    return tuple((name, Fraction(share)) for name, share in shares.items())


def stage(
    name: str,
    batches: int,
    shape: str = "constant",
    end: float | None = None,
    start: float | None = None,
    warmup: int = 0,
    **fields: Any,
) -> Stage:
    """A stage of `batches` batches; warmup in batches."""
    made = Stage(
        name=name,
        tokens=batches * BATCH,
        batch_tokens=BATCH,
        mixture=mixture(web="1"),
        context=Context(length=128),
        precision="fp32",
        optimizer=ADAMW,
        lr=LearningRate(shape, start, end, warmup * BATCH),  # type: ignore[arg-type]
    )
    return replace(made, **fields)


def treatment(*stages: Stage) -> Treatment:
    return Treatment(SCRATCH, stages)


def arm(name: str, *stages: Stage, **changes: Any) -> Arm:
    return Arm(name, changes, treatment(*stages))


def seeds(data: int = 1, init: int = 1, from_stage: str | None = None) -> SeedSet:
    return SeedSet(f"i{init}-d{data}", init, data, from_stage)
