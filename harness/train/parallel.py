"""How the processes of a run divide its model: not at all (`none`, `ddp`), or each holds a shard of it (`fsdp`)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.study.errors import UserError, nearest
from harness.train.numerics import Precision
from harness.train.optimizer import gradient_norm, trained_parameters
from harness.train.ranks import Ranks

STRATEGIES = ("auto", "ddp", "fsdp")
# Weights, gradients and AdamW's state are 16 bytes a parameter: this many are 16 GB, and leave a GPU of 24 GB or more
# room for activations. Below, a whole model on each rank is as fast and simpler.
MOST_PARAMETERS_OF_DDP = 1_000_000_000


def choose(asked: str, world: int, parameters: int) -> str:
    """The strategy of `world` processes for a model of so many parameters: none, ddp or fsdp.

    asked: `launch.strategy`. `auto` is ddp up to MOST_PARAMETERS_OF_DDP. Raises UserError for an unknown one, and where
    one process is to divide a model among several.
    """
    if asked not in STRATEGIES:
        raise UserError(f"`launch.strategy: {asked}` is not known; {nearest(asked, STRATEGIES)}")
    if world == 1:
        if asked != "auto":
            raise UserError(
                f"`launch.strategy: {asked}` divides a run among several processes, and this run has one; use `auto`, "
                "or ask for more with `launch.gpus`, `launch.nodes` or `launch.slurm.ntasks_per_node`."
            )
        return "none"
    if asked == "auto":
        return "ddp" if parameters <= MOST_PARAMETERS_OF_DDP else "fsdp"
    return asked


def described(strategy: str, precision: Precision) -> str:
    """Where parameters are, and in which type they are used and their gradients summed; for an attempt's record."""
    gathered = "bf16" if precision == "bf16-mixed" else "fp32"
    if strategy == "fsdp":
        return f"parameters fp32 sharded, gathered as {gathered}, gradients reduced in fp32"
    whole = "parameters fp32, whole on each process" if strategy == "ddp" else "parameters fp32"
    return whole + (", used as bf16 in matrix products" if gathered == "bf16" else "")


class Weights(Protocol):
    """The trained weights as this rank holds them. `named`: what stands for the model where optimizer and average work
    element by element; its parameters are `parameters`, under the model's names."""

    parameters: list[nn.Parameter]
    named: nn.Module

    def before_micro_batch(self, last: bool) -> None:
        """last: the gradients of this update are complete after it."""

    def reduce(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """Figures of the whole batch from those of this rank's rows, and the global norm of the whole batch's
        gradients, which are in the parameters' `grad` from here on."""

    def updated(self) -> None:
        """The update was made; its gradients are forgotten."""

    def exposed(self) -> AbstractContextManager[None]:
        """A context for whatever makes this rank wait for others outside of exchanges."""

    def check_equal(self) -> None:
        """Raise RuntimeError on every rank unless what all hold is the same on all."""


class Whole:
    """The whole model on this rank; of several, each sums its gradients with the others after the backward pass."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self.named = model
        self.parameters = [parameter for _, parameter in trained_parameters(model)]
        self._ranks = ranks

    def before_micro_batch(self, last: bool) -> None: ...

    def reduce(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        self._ranks.sum_gradients(self.parameters, figures)
        return figures, gradient_norm(self.parameters)

    def updated(self) -> None: ...

    def exposed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def check_equal(self) -> None:
        if self._ranks.world > 1:
            self._ranks.check_equal(bits(self.parameters), "the weights are")


def bits(tensors: list[nn.Parameter] | list[Tensor]) -> int:
    """A checksum of the bits of 32-bit tensors, below 2^62: equal ones have equal ones. Waits for the device."""
    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors if tensor.numel()]
    return int(torch.stack(sums).sum()) % (1 << 62) if sums else 0
