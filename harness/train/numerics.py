"""Numerics: what changes the bits of a result without being part of its science.

Device, threads, rows per forward and the library's version decide the order in which floating-point sums are
taken. They are fixed over a study, recorded with every attempt and name nothing; at equal numerics a segment gives
equal bits, wherever it was cut.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from harness.study.errors import UserError, nearest
from harness.train.kernels import TORCH, Asked, Kernels, resolve, version

Precision = Literal["fp32", "bf16-mixed"]
Checkpointing = Literal["off", "full", "selective"]

# Steps between two looks at the figures on an accelerator: each look waits for the device.
LOOK_EVERY_ON_ACCELERATOR = 16


@dataclass(frozen=True)
class Numerics:
    """Where and in what order the arithmetic runs.

    threads: intra-op threads of this process. micro_batch: tokens per forward, None for a whole batch.
    kernels: whose kernels run in the model; asked: what the study says of them, from which they follow where the model
    is known (`for_model`). compile: whether the model's layers are compiled. activation_checkpointing: what of a layer
    is computed again in the backward. world: processes that share a batch; strategy: how
    they divide the model (`parallel`): none, ddp or fsdp.
    """

    device: Literal["cpu", "cuda"]
    threads: int
    micro_batch: int | None
    torch: str
    processor: str
    kernels: Kernels = TORCH
    world: int = 1
    strategy: str = "none"
    compile: bool = False
    activation_checkpointing: Checkpointing = "off"
    asked: Asked = "torch"

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        threads: int = 1,
        micro_batch: int | None = None,
        kernels: Asked = "torch",
        compile: bool = False,
        activation_checkpointing: Checkpointing = "off",
    ) -> Numerics:
        """The numerics of this machine. Raises UserError where `cuda` is asked for and none is usable."""
        if device not in {"auto", "cpu", "cuda"}:
            raise UserError(f"`device: {device}` is not known; valid here: auto, cpu, cuda.")
        usable = torch.cuda.is_available()
        if device == "cuda" and not usable:
            raise UserError("`device: cuda` was asked for, but torch sees no CUDA device here.")
        chosen: Literal["cpu", "cuda"] = "cuda" if usable and device != "cpu" else "cpu"
        processor = torch.cuda.get_device_name() if chosen == "cuda" else _cpu_name()
        return cls(
            chosen,
            threads,
            micro_batch,
            torch.__version__,
            processor,
            compile=compile,
            activation_checkpointing=activation_checkpointing,
            asked=kernels,
        )

    def for_model(self, config: PretrainedConfig) -> Numerics:
        """With the kernels that a model of `config` is trained with. Raises UserError for what cannot run."""
        return replace(
            self, kernels=resolve(self.asked, config, self.device, self.compile, self.activation_checkpointing)
        )

    def record(self) -> dict[str, Any]:
        """The facts as JSON, for an attempt's `env.json`. What came later is recorded where it is used."""
        facts = {
            "device": self.device,
            "threads": self.threads,
            "micro_batch": self.micro_batch,
            "torch": self.torch,
            "processor": self.processor,
            "kernels": self.kernels.label,
            "world": self.world,
        }
        if self.strategy != "none":
            facts["strategy"] = self.strategy
        if self.kernels.liger:
            facts["liger"] = version()
        if self.compile:
            facts["compile"] = True
        if self.activation_checkpointing != "off":
            facts["activation_checkpointing"] = self.activation_checkpointing
        return facts

    @property
    def look_every(self) -> int:
        """Updates after which the figures are fetched from the device."""
        return 1 if self.device == "cpu" else LOOK_EVERY_ON_ACCELERATOR

    def rows_per_forward(self, batch_tokens: int, length: int) -> int:
        """Rows of `length` tokens in one forward. Raises UserError when not even one row fits."""
        tokens = min(self.micro_batch or batch_tokens, batch_tokens)
        if tokens < length:
            raise UserError(
                f"`launch.micro_batch: {self.micro_batch}` is shorter than one row of {length} tokens "
                f"(`context.length`); use at least {length}."
            )
        return tokens // length

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """The context of a forward: nothing for fp32, bf16 autocast over fp32 weights for bf16-mixed."""
        if attention_dtype(precision) == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, dtype=attention_dtype(precision))


def attention_dtype(precision: Precision) -> torch.dtype:
    """The type in which matrix products and attention run. Raises UserError for an unknown precision."""
    kinds: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16}
    if precision not in kinds:
        raise UserError(f"`precision: {precision}` is not known; {nearest(precision, kinds)}")
    return kinds[precision]


def set_threads(numerics: Numerics) -> None:
    """Fix this process's threads and deterministic kernels. Call once per worker, before any other work."""
    torch.set_num_threads(numerics.threads)
    if numerics.device == "cuda":
        # cuBLAS needs its workspace fixed to give equal bits in every run; read when the first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Long rows take most of the memory; without this the rest of it may lie in pieces that fit nothing.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
    else:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library keep large freed blocks instead of returning them to the kernel after every step.

    Activations and logits are freed and asked for again each step; otherwise every step pays a page fault per 4 KiB
    of them (measured on a small model: 1,200 faults and a tenth of the step). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
    library = ctypes.CDLL(None)
    library.mallopt(mmap_threshold, 1 << 30)
    library.mallopt(trim_threshold, 1 << 30)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
