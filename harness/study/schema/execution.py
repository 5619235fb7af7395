"""How runs are launched, what they may cost, and what is kept of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.study.blocks import MAPPING, TEXT, TEXT_OR_MAPPING, Block, Duration, ExactTokens, Kept, Size, choice
from harness.study.schema.scalars import Count, Positive
from harness.study.schema.slurm import GpuType, ResourcesRule, SlurmOptions

OneKernel = Annotated[Literal["torch", "liger"], choice("torch", "liger")]


class KernelsSpec(Block):
    """Whose kernel does each part of the model; torch's where nothing is written."""

    rope: OneKernel = Field("torch", description="torch or liger: rotary position embedding")
    rms_norm: OneKernel = Field("torch", description="torch or liger: RMSNorm")
    swiglu: OneKernel = Field("torch", description="torch or liger: the gated MLP's activation (GeGLU, too)")
    fused_linear_cross_entropy: Annotated[Literal["torch", "liger", "chunked"], choice("torch", "liger", "chunked")] = (
        Field(
            "torch",
            description="torch (logits of whole rows), liger, or chunked (torch, a chunk of tokens at a time)",
        )
    )


KernelsWord = Annotated[Literal["auto", "torch", "liger"], choice("auto", "torch", "liger"), TEXT]


class LaunchSpec(Block):
    jobs: Count = Field(1, description="a positive whole number of runs at once")
    threads: Count = Field(1, description="a positive whole number of threads per run")
    device: Annotated[Literal["cpu", "cuda", "auto"], choice("cpu", "cuda", "auto")] = Field(
        "auto", description="cpu, cuda or auto"
    )
    micro_batch: Size | None = Field(None, description="tokens per forward pass, such as 2^14")
    kernels: Annotated[KernelsWord | Annotated[KernelsSpec, MAPPING], TEXT_OR_MAPPING] = Field(
        "auto",
        description="auto (Liger's where it runs, torch's on a CPU), torch, liger (all of them, or an error), or a "
        "mapping of rope, rms_norm, swiglu, fused_linear_cross_entropy",
    )
    compile: bool = Field(False, description="true for torch.compile of the model's layers, or false")
    activation_checkpointing: Annotated[Literal["off", "full", "selective"], choice("off", "full", "selective")] = (
        Field(
            "off",
            description="off, full (a layer's activations are computed again in the backward) or selective (all "
            "but matrix products and attention)",
        )
    )
    checkpoint_every: ExactTokens | None = Field(None, description="tokens between checkpoints, or null")
    nodes: Count = Field(1, description="a positive whole number of machines per run; more than one needs a cluster")
    gpus: Count = Field(1, description="a positive whole number of GPUs per machine; more than one needs a cluster")
    gpu_type: GpuType | None = Field(
        None, description="the type of GPU that a cluster is asked for, by Slurm's name for it such as h100"
    )
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], choice("auto", "ddp", "fsdp")] = Field(
        "auto",
        description="ddp (each process has the whole model), fsdp (each has a shard) or auto (ddp up to 1B parameters)",
    )
    time: Duration | None = Field(
        None, description="a run's time on a cluster, such as 12h, 1h30m or 2d; runs on this machine have no limit"
    )
    silent_after: Duration = Field(60, description="a time without a step after which status says silent, such as 5m")
    parallel: Count | None = Field(
        None, description="a positive whole number of runs at once on a cluster; on this machine `jobs` says it"
    )
    slurm: SlurmOptions = Field(
        default_factory=dict, description="a mapping of sbatch's options, such as {account: ours, partition: gpu}"
    )
    resources: list[ResourcesRule] = Field(
        default_factory=list, description="a list of rules that give arms, stages or evaluations other resources"
    )


class BudgetSpec(Block):
    gpu_hours: Positive | None = Field(None, description="a positive number of GPU-hours")


class KeepSpec(Block):
    checkpoints: Kept = Field(
        "last",
        description="last, all (that `launch.checkpoint_every` asks for), or `every 1B`: the last and the first at or "
        "past each multiple",
    )
