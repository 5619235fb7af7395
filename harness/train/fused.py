"""The output head and the loss as one: hidden states in, losses and gradients out, never the logits of a whole row.

Logits are the largest tensor of a small model's step: at 16,384 tokens and a vocabulary of 128,256 they take 8 GB in
fp32, their gradient as much. Here they exist for a chunk of tokens at a time, and the gradient is taken at once (as in
mgmalek's efficient cross entropy, and Liger, 2410.10989, section 3.2), which is possible because every trained label of
a batch has the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.train.loss import IGNORED, LossTerms

# Bytes of a chunk's logits in fp32: on a CPU what a cache can hold, on a GPU enough rows for a matrix product.
CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}
_LARGEST_CHUNK_FACTOR = 8


@dataclass(frozen=True, slots=True)
class FusedLosses:
    """objective: scalar with a gradient. sums: cross entropy of each group of rows; z_loss: its part in `objective`.

    Liger sums the z-loss in the type of the hidden states: under bf16 `z_loss` is exact to 0.4 % of itself, and `sums`,
    from which it is taken, to as much of it. The objective and its gradients are not touched by that.
    """

    objective: Tensor
    sums: Sequence[Tensor]
    z_loss: Tensor


def liger_losses(
    hidden: Tensor, head: nn.Linear, labels: Tensor, groups: Sequence[Tensor], terms: LossTerms, count: int
) -> FusedLosses:
    """By Liger's kernel, with gradients accumulated in fp32.

    hidden: [rows, length, width] in the type that the product is to have; labels: [rows, length]. groups: int64 row
    numbers of each source; a call for each gives its sum without computing logits twice, as losses per token would.
    count: trained labels of the batch.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    objective = z_loss = torch.zeros((), device=hidden.device)
    sums = []
    for rows in groups:
        alone = len(groups) == 1
        # A cast for each call: gradients of several calls are summed in the weight's own type (fp32; bf16 where a shard
        # was gathered as that).
        weight = head.weight.to(hidden.dtype)
        result = liger_fused_linear_cross_entropy(
            (hidden if alone else hidden[rows]).reshape(-1, hidden.shape[-1]),
            weight,
            (labels if alone else labels[rows]).reshape(-1),
            bias=None if head.bias is None else head.bias.to(hidden.dtype),
            ignore_index=IGNORED,
            lse_square_scale=terms.z_loss,
            label_smoothing=terms.label_smoothing,
            reduction="sum",
            return_z_loss=True,
            accum_dtype=torch.float32,
            chunk_mem_const=chunk_factor(*head.weight.shape),
        )
        squares = result.z_loss.detach().float()
        objective = objective + result.loss / count
        z_loss = z_loss + squares / count
        sums.append(result.loss.detach() - squares)
    return FusedLosses(objective, sums, z_loss)


def chunk_factor(vocabulary: int, width: int) -> int:
    """Liger's `chunk_mem_const`: a chunk's logits take as much memory as so many hidden states.

    1, Liger's default, gives chunks of 256 rows where the vocabulary is a hundred times the width, too few for the
    matrix products of a GPU; a power of two up to 8 gives about 1,000.
    """
    factor = 1
    while factor < _LARGEST_CHUNK_FACTOR and 16 * factor * width < vocabulary:
        factor *= 2
    return factor


def chunked_losses(hidden: Tensor, head: nn.Linear, labels: Tensor, terms: LossTerms, count: int) -> tuple[Tensor, ...]:
    """By torch, on any device: the objective (scalar with a gradient), cross entropy [rows, length] and squared log
    normalizers [rows, length], both without. Arguments as for `liger_losses`."""
    weight = head.weight.to(hidden.dtype)
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    flat = hidden.reshape(-1, hidden.shape[-1])
    objective, losses, squares = _ChunkedLoss.apply(flat, weight, bias, labels.reshape(-1), terms, count)
    return objective, losses.view(labels.shape), squares.view(labels.shape)


class _ChunkedLoss(torch.autograd.Function):
    """(sum of cross entropy + z_loss times the squared log normalizers) / count, gradients computed in the forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, terms: LossTerms, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, squares = (torch.empty(len(labels), device=hidden.device) for _ in range(2))
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        rows = max(1, CHUNK_BYTES[hidden.device.type] // (4 * weight.shape[0]))
        for first in range(0, len(labels), rows):
            part = slice(first, first + rows)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            losses[part], squares[part], gradient = _loss_and_gradient(logits, labels[part], terms, count)
            torch.mm(gradient, weight, out=of_hidden[part])
            if of_weight.dtype == gradient.dtype:
                of_weight.addmm_(gradient.t(), hidden[part])
            else:
                of_weight += gradient.t() @ hidden[part]
            if of_bias is not None:
                of_bias += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(of_hidden, of_weight.to(weight.dtype), None if bias is None else of_bias)
        objective = (losses.sum() + terms.z_loss * squares.sum()) / count
        ctx.mark_non_differentiable(losses, squares)
        return objective, losses, squares

    @staticmethod
    def backward(ctx: Any, of_objective: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        of_bias = None if of_bias is None else (of_bias * of_objective).to(of_weight.dtype)
        return of_hidden * of_objective, of_weight * of_objective, of_bias, None, None, None


def _loss_and_gradient(logits: Tensor, labels: Tensor, terms: LossTerms, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy and squared log normalizer of each label [tokens], and the gradient of the objective, in the type
    of `logits` [tokens, vocabulary]. The formulas are those of `train.loss`."""
    trained = labels != IGNORED
    target = torch.where(trained, labels, 0).unsqueeze(-1)
    gradient = torch.softmax(logits, dim=-1, dtype=torch.float32)
    normalizer = logits.amax(dim=-1, keepdim=True) - gradient.amax(dim=-1, keepdim=True).log()
    losses = normalizer - logits.gather(-1, target)
    smoothing = terms.label_smoothing
    if smoothing:
        mean = normalizer - logits.mean(dim=-1, keepdim=True, dtype=torch.float32)
        losses = (1 - smoothing) * losses + smoothing * mean
    weight = trained.unsqueeze(-1) / count
    gradient.mul_(weight * (1 + 2 * terms.z_loss * normalizer) if terms.z_loss else weight)
    if smoothing:
        gradient.sub_(weight * (smoothing / logits.shape[-1]))
    gradient.scatter_(-1, target, gradient.gather(-1, target) - (1 - smoothing) * weight)
    squares = normalizer.square().squeeze(-1).mul_(trained)
    return losses.squeeze(-1).mul_(trained), squares, gradient.to(logits.dtype)
