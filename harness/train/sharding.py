"""Sharded training: FSDP2 (`fully_shard`) over all ranks, each of which holds a part of the rows of every parameter.

Every decoder layer is a unit, gathered when it runs and again for its backward pass; embeddings, final norm and output
head (tied or not) are the root's unit and stay gathered from the forward to the backward pass, so that a loss may read
the head's weight (research: torchtitan's `distributed/fsdp.py`). Weights and optimizer state are fp32 and sharded. With
`bf16-mixed`, parameters are gathered as bf16 and gradients reduced in fp32; everything else is as under autocast on one
device, the residual stream in fp32 included, since that is what the precision names.

Optimizer, average and norm work on each rank's own rows as plain tensors (`Shards.parameters` share their memory with
FSDP's), so they are the very code that one process runs. Memory of a rank: 12 bytes a parameter / ranks with AdamW
(16 with gradients), a gathered layer twice, the root's unit, and with micro-batches the gradients of all parameters in
fp32 until they are reduced once. While a model is loaded each rank has all of it, fp32, in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils import _pytree as pytree

from harness.train.forward import Forward, Losses
from harness.train.layers import decoder_layers
from harness.train.numerics import Precision
from harness.train.optimizer import Muon, trained_parameters
from harness.train.parallel import bits
from harness.train.ranks import Ranks


def _register_losses() -> None:
    """FSDP looks for the tensors in a module's output, where the backward pass begins."""
    pytree.register_pytree_node(
        Losses,
        lambda losses: ([losses.objective, losses.by_source, losses.z_loss], None),
        lambda values, _: Losses(*values),
    )


_register_losses()


class Shards(nn.Module):
    """This rank's rows of every trained parameter, as `parallel.Weights` has it.

    `named_parameters` gives them as plain tensors under the model's names, so that this module stands for the model in
    everything that works element by element.
    """

    def __init__(
        self, forward: Forward, ranks: Ranks, device: str, precision: Precision, optimizer: torch.optim.Optimizer
    ) -> None:
        """Shard the model in `forward`, which moves to the device, and give `optimizer`, built for the whole model and
        without state, the shards to update. Every rank calls it with equal weights. Raises UserError for a model of
        which the decoder layers cannot be told."""
        super().__init__()
        self._ranks = ranks
        # Of the group that is there: a mesh of its own making would choose this process's GPU anew, by its rank.
        self.mesh = DeviceMesh.from_group(dist.group.WORLD, device)
        names = {id(parameter): name for name, parameter in trained_parameters(forward.model)}
        self._forward = [forward]  # in a list: a module here would be one of this module's own
        self._root: Any = _shard(forward, self.mesh, precision)
        self._sharded: dict[str, DTensor] = {
            name: parameter for name, parameter in trained_parameters(forward.model) if isinstance(parameter, DTensor)
        }
        self._local = {name: nn.Parameter(value.detach().to_local()) for name, value in self._sharded.items()}
        self._names = {id(local): name for name, local in self._local.items()}
        self.parameters = list(self._local.values())  # type: ignore[assignment]
        self.named = self
        self._optimizer = optimizer
        for group in optimizer.param_groups:
            group["params"] = [self._local[names[id(parameter)]] for parameter in group["params"]]
        if isinstance(optimizer, Muon):
            optimizer.shards = self

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._local.items())

    def before_micro_batch(self, last: bool) -> None:
        """Gradients are reduced once, with the last micro-batch of this rank's rows."""
        self._root.set_requires_gradient_sync(last)
        self._root.set_is_last_backward(last)

    def reduce(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        squares = torch.zeros((), device=figures.device)
        gradients = []
        for name, local in self._local.items():
            gradient = self._sharded[name].grad
            local.grad = None if gradient is None else gradient.to_local()  # type: ignore[attr-defined]
            if local.grad is not None and local.numel():
                gradients.append(local.grad)
        if gradients:
            squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
        summed = torch.cat([figures, squares.unsqueeze(0)])
        self._ranks.sum(summed)
        return summed[:-1], summed[-1].sqrt()

    def updated(self) -> None:
        for parameter in self._sharded.values():
            parameter.grad = None

    def exposed(self) -> AbstractContextManager[None]:
        return self._ranks.exposed()

    def check_equal(self) -> None:
        """What every rank holds whole: counters of the optimizer and buffers. Shards have no second copy to compare."""
        counters = [s["step"] for s in self._optimizer.state.values() if "step" in s]
        buffers = [buffer.float() for buffer in self._forward[0].buffers() if buffer.is_floating_point()]
        self._ranks.check_equal(bits([*counters, *buffers]), "the optimizer's counters and the model's buffers are")

    def sharded(self, parameter: Tensor, shard: Tensor) -> DTensor:
        """`shard`, which lies as this rank's shard `parameter` does, as a part of the whole tensor."""
        return self.like(self._names[id(parameter)], shard)

    def like(self, name: str, shard: Tensor) -> DTensor:
        """A tensor of the shape of the parameter `name`, of which this rank has the rows in `shard`."""
        whole = self._sharded[name]
        return DTensor.from_local(shard, self.mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=_row(whole))

    def rows(self, name: str) -> slice:
        """Which rows of the parameter `name` this rank has: those of `torch.chunk`."""
        count = self._sharded[name].shape[0]
        each = -(-count // self._ranks.world)
        first = min(self._ranks.rank * each, count)
        return slice(first, min(first + each, count))

    def shape(self, name: str) -> torch.Size:
        """Of the whole parameter."""
        return self._sharded[name].shape

    def tensors(self) -> Mapping[str, DTensor]:
        """The parameters by name."""
        return self._sharded

    def whole(self, parameter: Tensor, shard: Tensor) -> Tensor:
        return self.sharded(parameter, shard).full_tensor()

    def own(self, parameter: Tensor, matrix: Tensor) -> Tensor:
        return matrix[self.rows(self._names[id(parameter)])]


def _row(whole: DTensor) -> tuple[int, ...]:
    """The stride of a contiguous tensor of that shape."""
    return torch.empty(whole.shape, device="meta").stride()


def _shard(forward: Forward, mesh: DeviceMesh, precision: Precision) -> nn.Module:
    if precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for module in forward.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(_in_fp32)
    else:
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for layer in decoder_layers(forward.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(forward, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in forward.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            # The loss is divided by the whole batch's labels already: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return forward


def _in_fp32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """As under autocast, where a look-up gives what the table holds: the residual stream begins in fp32."""
    return output.float()
