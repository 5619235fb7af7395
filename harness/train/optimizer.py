"""AdamW with decay on matrices alone, clipping folded into the update, and a state that files keep exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(model: nn.Module, science: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW as a piece's `science["optimizer"]` says, without state. The rate is set before each update.

    Weight decay acts on parameters of two or more dimensions (matrices and embeddings), not on norms and biases.
    """
    if science["name"] != "adamw":
        raise ValueError(f"unknown optimizer {science['name']!r}")
    parameters = [parameter for _, parameter in trained_parameters(model)]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": science["weight_decay"]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=tuple(science["betas"]),
        eps=science["eps"],
        fused=True,
    )


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that training changes; a tied one once, under its first name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The global L2 norm of all gradients, a scalar on their device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def update(optimizer: torch.optim.AdamW, rate: float, clip: float | None, norm: Tensor, broken: Tensor) -> None:
    """One update at `rate` with gradients clipped to a global norm of `clip`; none where `broken` is 1.

    broken: float32 scalar on the gradients' device, 0 or 1. Nothing here waits for the device: the fused kernel reads
    the divisor of the gradients and the flag where they are, as a gradient scaler of mixed precision would have it.
    The divisor max(1, (norm + 1e-6) / clip) is the inverse of `clip_grad_norm_`'s factor.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.grad_scale = None if clip is None else ((norm + 1e-6) / clip).clamp(min=1.0)
    optimizer.found_inf = broken
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimizer's whole state by name: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`.

    A parameter that has had no update yet has no entry.
    """
    tensors = {}
    for name, parameter in trained_parameters(model):
        for part, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{part}.{name}"] = value
    return tensors


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back, bit for bit. Raises ValueError when it belongs to other parameters.

    Tensors are copied into memory of the optimizer's own: a file's mapping is aligned differently, and alignment may
    choose another kernel with other rounding.
    """
    expected = {f"{part}.{name}" for name, _ in trained_parameters(model) for part in (*MOMENTS, "step")}
    unknown, missing = set(tensors) - expected, expected - set(tensors)
    if unknown or (missing and tensors):
        raise ValueError(f"optimizer state does not fit the model: {len(missing)} missing, {len(unknown)} unknown")
    if not tensors:
        return
    for name, parameter in trained_parameters(model):
        state: dict[str, Tensor] = {"step": tensors[f"step.{name}"].to(parameter.device, torch.float32, copy=True)}
        for part in MOMENTS:
            saved = tensors[f"{part}.{name}"]
            if saved.shape != parameter.shape:
                raise ValueError(f"optimizer state {part}.{name} is {tuple(saved.shape)}, not {tuple(parameter.shape)}")
            state[part] = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(saved)
        optimizer.state[parameter] = state
