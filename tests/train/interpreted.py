"""Run by test_kernels under TRITON_INTERPRET=1: Liger's fused loss beside torch's functions. Prints one JSON object.

Small sizes: the interpreter is some thousand times slower than a GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from harness.train.fused import fused_losses
from harness.train.kernels import resolve
from harness.train.loss import LossTerms
from tests.train import build

TERMS = {
    "plain": LossTerms(),
    "z-loss": LossTerms(z_loss=1e-2),
    "smoothed": LossTerms(label_smoothing=0.1),
    "both": LossTerms(1e-2, 0.1),
}
ROWS, LENGTH, WIDTH, VOCABULARY = 4, 4, 16, 96


def losses(precision: str, terms: LossTerms) -> list[tuple[Any, Any]]:
    """(ours, torch's) of the objective, losses and squares of labels, gradients of hidden states, weight and bias."""
    draw = torch.Generator().manual_seed(1)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=draw).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, VOCABULARY)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw)
    labels[0, 3] = labels[2, 1] = -100
    count = int((labels != -100).sum())
    objective, of_labels, squares = fused_losses("liger", hidden, head, labels, terms, count)
    objective.backward()
    ours = [
        objective.detach(),
        of_labels,
        squares,
        hidden.grad,
        head.weight.grad,
        head.bias.grad,
    ]

    plain = hidden.detach().float().requires_grad_()
    weight, bias = (p.detach().to(dtype).float().requires_grad_() for p in (head.weight, head.bias))
    logits = functional.linear(plain, weight, bias)
    each = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=terms.label_smoothing
    ).view(labels.shape)
    normalizers = torch.logsumexp(logits, -1).square() * (labels != -100)
    objective = (each.sum() + terms.z_loss * normalizers.sum()) / count
    objective.backward()
    known = normalizers.detach() if terms.z_loss else torch.zeros_like(labels, dtype=torch.float32)
    theirs = [objective.detach(), each.detach(), known, plain.grad, weight.grad, bias.grad]
    return [(one.float().tolist(), other.tolist()) for one, other in zip(ours, theirs, strict=True)]


def updates(loss: str) -> tuple[list[dict[str, Any]], int]:
    """Three updates of a toy with a z-loss, and how often its output head was called."""
    model = build.model()
    pieces = [build.piece(0, 8 * build.BATCH, optimizer={"z_loss": 1e-2})]
    kernels = resolve({"fused_linear_cross_entropy": loss}, model.config, "cpu")
    loop = build.loop(pieces, replace(build.NUMERICS, kernels=kernels, micro_batch=2 * build.LENGTH), model)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    seen = []
    for _ in range(3):
        loop.update()
        (update,) = loop.look()
        seen.append(
            {
                "loss": update.loss,
                "by_source": dict(update.loss_by_source),
                "grad_norm": update.grad_norm,
                "z_loss": update.z_loss,
            }
        )
    return seen, len(calls) // 2  # a batch of four rows is two forwards


def main() -> None:
    found = {
        f"{precision} {name}": losses(precision, terms)
        for precision in ("fp32", "bf16")
        for name, terms in TERMS.items()
    }
    trained = {loss: updates(loss) for loss in ("liger", "torch", "chunked")}
    calls = {loss: count for loss, (_, count) in trained.items()}
    print(json.dumps({"losses": found, "updates": {k: v for k, (v, _) in trained.items()}, "head_calls": calls}))


if __name__ == "__main__":
    main()
