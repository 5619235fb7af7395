"""How runs are launched, what they may cost, and what is kept of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.study.blocks import Block, ExactTokens, Kept, Size, choice
from harness.study.schema.scalars import Count, Positive


class LaunchSpec(Block):
    later: ClassVar[frozenset[str]] = frozenset({"nodes", "gpus", "time", "parallel", "slurm"})

    jobs: Count = Field(1, description="a positive whole number of runs at once")
    threads: Count = Field(1, description="a positive whole number of threads per run")
    device: Annotated[Literal["cpu", "cuda", "auto"], choice("cpu", "cuda", "auto")] = Field(
        "auto", description="cpu, cuda or auto"
    )
    micro_batch: Size | None = Field(None, description="tokens per forward pass, such as 2^14")
    checkpoint_every: ExactTokens | None = Field(None, description="tokens between checkpoints, or null")


class BudgetSpec(Block):
    gpu_hours: Positive | None = Field(None, description="a positive number of GPU-hours")


class KeepSpec(Block):
    checkpoints: Kept = Field("last", description="last or all")
