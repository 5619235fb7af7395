"""The exponential moving average of the weights, kept beside them while they train.

After each update mean <- b mean + (1 - b) weights, in fp32, b being `optimizer.ema` (Polyak & Juditsky 1992 in the
form of Tarvainen & Valpola, 1703.01780, section 2). It begins at the weights where it begins: no correction for a
start at zero is needed. Buffers (none of which training changes) are those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.study.errors import UserError
from harness.train.optimizer import trained_parameters

Piece = Mapping[str, Any]


class WeightAverage:
    """The average of `model`'s trained parameters, beginning at what they are now."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(trained_parameters(model))
        self._decay = decay
        self._means = {name: _fp32(parameter) for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, broken: Tensor) -> None:
        """Take in the weights after an update; nothing where `broken` (a float32 scalar on their device) is 1."""
        weight = (1.0 - self._decay) * (1.0 - broken)
        for name, parameter in self._parameters.items():
            self._means[name].lerp_(parameter.float(), weight)

    def tensors(self) -> dict[str, Tensor]:
        """The means by parameter name, float32."""
        return dict(self._means)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved means, bit for bit. Raises UserError when they are of another model."""
        if set(tensors) != set(self._means) or any(tensors[n].shape != mean.shape for n, mean in self._means.items()):
            raise UserError("the average of weights in the checkpoint is not one of this model.")
        for name, mean in self._means.items():
            mean.copy_(tensors[name])


@torch.no_grad()
def put_average(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` the averaged weights. Raises UserError when they are of another model."""
    parameters = dict(trained_parameters(model))
    if set(tensors) != set(parameters) or any(tensors[n].shape != p.shape for n, p in parameters.items()):
        raise UserError("the average of weights in the checkpoint is not one of this model.")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _fp32(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().to(torch.float32, copy=True)


def decay_at(pieces: Sequence[Piece], tokens: int) -> float | None:
    """`optimizer.ema` of the update that begins at `tokens` of a path; None where no average is kept, or no update."""
    for piece in pieces:
        if piece["start"] <= tokens < piece["end"]:
            decay = piece["science"]["optimizer"].get("ema")
            return None if decay is None else float(decay)
    return None
