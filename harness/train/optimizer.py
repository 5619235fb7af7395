"""Optimizers with decay on matrices alone, clipping folded into the update, and a state that files keep exactly.

AdamW is torch's fused kernel. Lion, Muon and SGD are written here, since torch's know no flag that makes an update do
nothing: whatever `broken` says is read where the gradients are, and no update waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.study.errors import UserError

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")
# Of the quintic whose iteration sends singular values to about 1: Jordan et al. 2024, kellerjordan.github.io/posts/muon
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_LEAST_NORM = 1e-7


class Guarded(torch.optim.Optimizer):
    """An optimizer with a fused kernel's two hooks, both on the device: grad_scale divides the gradients, and where
    found_inf is 1 neither weights nor state change."""

    grad_scale: Tensor | None = None
    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        broken = self.found_inf.bool()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad if self.grad_scale is None else parameter.grad / self.grad_scale
                    self.update(parameter, gradient, group, broken)

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], broken: Tensor) -> None:
        """Change one parameter and its state."""
        raise NotImplementedError

    def buffer(self, parameter: Tensor, name: str) -> Tensor:
        """The state `name` of a parameter, zero before its first update."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return cast(Tensor, state[name])


def _replace(value: Tensor, new: Tensor, broken: Tensor) -> None:
    value.copy_(torch.where(broken, value, new))


class Lion(Guarded):
    """m the momentum, g the gradient: w <- w - rate (sign(b1 m + (1 - b1) g) + decay w), then m <- b2 m + (1 - b2) g
    (Chen et al., 2302.06675, algorithm 2)."""

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], broken: Tensor) -> None:
        first, second = group["betas"]
        momentum = self.buffer(parameter, "exp_avg")
        direction = momentum.lerp(gradient, 1 - first).sign()
        new = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(direction, alpha=group["lr"])
        _replace(parameter, new, broken)
        _replace(momentum, momentum.lerp(gradient, 1 - second), broken)


class SGD(Guarded):
    """m <- momentum m + g, then w <- w - rate (m + decay w): torch's SGD with its weight decay decoupled
    (Loshchilov & Hutter, 1711.05101)."""

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], broken: Tensor) -> None:
        buffer = self.buffer(parameter, "momentum_buffer")
        moved = buffer * group["momentum"] + gradient
        new = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(moved, alpha=group["lr"])
        _replace(parameter, new, broken)
        _replace(buffer, moved, broken)


class Matrices(Protocol):
    """How parameters that are held in shards come together where an update needs whole matrices."""

    def whole(self, parameter: Tensor, shard: Tensor) -> Tensor:
        """The matrix of which every rank has a shard like its shard of `parameter`. Every rank calls it."""

    def own(self, parameter: Tensor, matrix: Tensor) -> Tensor:
        """This rank's shard of a matrix like the one that `parameter` is a shard of."""


class Muon(Guarded):
    """Matrices of layers move along their orthogonalized momentum, everything else by AdamW, all at one rate.

    m <- b m + (1 - b) g, u = b m + (1 - b) g (Nesterov), w <- w - rate (0.2 sqrt(max(rows, columns)) NS(u) + decay w):
    Jordan et al. 2024; the factor makes an update as large as AdamW's (Liu et al., 2502.16982, eq. 4). Of matrices
    that are held in shards, each rank orthogonalizes the whole one and keeps its part.
    """

    shards: Matrices | None = None

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], broken: Tensor) -> None:
        if not group["orthogonal"]:
            self._adamw(parameter, gradient, group)
            return
        buffer = self.buffer(parameter, "momentum_buffer")
        moved = buffer.lerp(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(moved, group["momentum"])
        if self.shards is not None:
            matrix = self.shards.whole(parameter, matrix)
        direction = orthogonalize(matrix)
        size = 0.2 * math.sqrt(max(matrix.shape))
        if self.shards is not None:
            direction = self.shards.own(parameter, direction)
        new = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(direction, alpha=size * group["lr"])
        _replace(parameter, new, broken)
        _replace(buffer, moved, broken)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        first, second = group["betas"]
        adamw(
            [parameter],
            [gradient],
            [self.buffer(parameter, "exp_avg")],
            [self.buffer(parameter, "exp_avg_sq")],
            [],
            [state["step"]],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrix: Tensor) -> Tensor:
    """About U V' of the singular value decomposition U S V' of a matrix [rows, columns], in bfloat16.

    Five quintic Newton-Schulz steps bring the singular values to between 0.7 and 1.2 (Jordan et al. 2024).
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.bfloat16()
    wide = wide.T if wide.shape[0] > wide.shape[1] else wide
    wide = wide / wide.norm().clamp(min=_LEAST_NORM)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def build_optimizer(model: nn.Module, science: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that a piece's `science["optimizer"]` names, without state. The rate is set before each update.

    Weight decay acts on parameters of two or more dimensions (matrices and, unless `decay_embeddings` is off,
    embeddings), not on norms and biases.
    """
    groups = _groups(model, science)
    name = science["name"]
    if name == "adamw":
        betas = (float(science["betas"][0]), float(science["betas"][1]))
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=science["eps"], fused=True)
    takes = {key: science[key] for key in ("betas", "eps", "momentum") if key in science}
    kinds: Mapping[str, type[Guarded]] = {"lion": Lion, "muon": Muon, "sgd": SGD}
    if name not in kinds:
        raise ValueError(f"unknown optimizer {name!r}")
    return kinds[name](groups, {"lr": 0.0, **takes})


def _groups(model: nn.Module, science: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameters with one weight decay and one rule each, in the order of the model within a group."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outer = embeddings | {id(parameter) for parameter in _output_head(model)}
    decay_embeddings = science.get("decay_embeddings", True)
    muon = science["name"] == "muon"
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for _, parameter in trained_parameters(model):
        if muon and parameter.ndim == 2 and id(parameter) not in outer:
            matrices.append(parameter)
        elif parameter.ndim >= 2 and (decay_embeddings or id(parameter) not in embeddings):
            decayed.append(parameter)
        else:
            others.append(parameter)
    decay = science["weight_decay"]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
        {"params": matrices, "weight_decay": decay},
    ]
    if science["name"] != "adamw":
        for group, orthogonal in zip(groups, (False, False, True), strict=True):
            group["orthogonal"] = orthogonal
    return [group for group in groups if group["params"]]


def _output_head(model: nn.Module) -> Iterable[nn.Parameter]:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return () if head is None else head.parameters()


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named parameters that training changes; a tied one once, under its first name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The global L2 norm of all gradients, a scalar on their device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def update(optimizer: torch.optim.Optimizer, rate: float, clip: float | None, norm: Tensor, broken: Tensor) -> None:
    """One update at `rate` with gradients clipped to a global norm of `clip`; none where `broken` is 1.

    broken: float32 scalar on the gradients' device, 0 or 1. Nothing here waits for the device: the kernel reads the
    divisor of the gradients and the flag where they are, as a gradient scaler of mixed precision would have it.
    The divisor max(1, (norm + 1e-6) / clip) is the inverse of `clip_grad_norm_`'s factor.
    """
    assert isinstance(optimizer, torch.optim.AdamW | Guarded)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.grad_scale = None if clip is None else ((norm + 1e-6) / clip).clamp(min=1.0)
    optimizer.found_inf = broken
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's whole state by name, such as `exp_avg.<parameter>` and `step.<parameter>`.

    A parameter that has had no update yet has no entry.
    """
    tensors = {}
    for name, parameter in trained_parameters(model):
        for part, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{part}.{name}"] = value
    return tensors


def _parts(optimizer: torch.optim.Optimizer) -> dict[int, tuple[str, ...]]:
    """What an optimizer keeps of each parameter, by its id."""
    parts: dict[int, tuple[str, ...]] = {}
    for group in optimizer.param_groups:
        if isinstance(optimizer, Lion):
            kept: tuple[str, ...] = ("exp_avg",)
        elif isinstance(optimizer, SGD) or group.get("orthogonal"):
            kept = ("momentum_buffer",)
        else:
            kept = ADAM_STATE
        parts.update({id(parameter): kept for parameter in group["params"]})
    return parts


def load_optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a saved state back, bit for bit. Raises UserError when it belongs to other parameters or another optimizer.

    A parameter without any tensor has had no update yet, as `optimizer_tensors` leaves it out: it stays as it is.
    Tensors are copied into memory of the optimizer's own: a file's mapping is aligned differently, and alignment may
    choose another kernel with other rounding.
    """
    if not tensors:
        return
    parts = _parts(optimizer)
    named = {
        name: (parameter, {part: f"{part}.{name}" for part in parts[id(parameter)]})
        for name, parameter in trained_parameters(model)
    }
    unknown = set(tensors) - {key for _, keys in named.values() for key in keys.values()}
    begun = {name: of for name, of in named.items() if any(key in tensors for key in of[1].values())}
    missing = {key for _, keys in begun.values() for key in keys.values()} - set(tensors)
    if unknown or missing:
        what = f"{len(missing)} missing, {len(unknown)} unknown"
        name = type(optimizer).__name__
        raise UserError(f"the optimizer state in the checkpoint is not one of {name} for this model: {what} tensors.")
    for parameter, keys in begun.values():
        state: dict[str, Tensor] = {}
        for part, key in keys.items():
            saved = tensors[key]
            if part == "step":
                state[part] = saved.to(parameter.device, torch.float32, copy=True)
                continue
            if saved.shape != parameter.shape:
                what = f"{key} is {tuple(saved.shape)}, not {tuple(parameter.shape)}"
                raise UserError(f"the optimizer state in the checkpoint is not one of this model: {what}.")
            state[part] = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(saved)
        optimizer.state[parameter] = state
