"""The output head and the loss as one: hidden states in, losses and gradients out, never the logits of a whole row.

Logits are the largest tensor of a small model's step: at 16,384 tokens and a vocabulary of 128,256 they take 8 GB in
fp32, their gradient as much. Here they exist for a chunk of tokens at a time, and the gradient is taken at once (as in
mgmalek's efficient cross entropy, and Liger, 2410.10989, section 3.2), which is possible because every trained label of
a batch has the same weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.train.loss import IGNORED, LossTerms

# Bytes of a chunk's logits in fp32: on a CPU what a cache can hold; on a GPU some thousand rows, since every chunk
# reads and writes the gradient of the whole output head.
CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 30}
_ROWS_OF_A_TILE = 128
# (logits of a chunk [tokens, vocabulary], labels [tokens], terms, labels of the batch) → losses and squared log
# normalizers [tokens] in fp32, and the gradient of the objective, in the type and maybe the memory of the logits
OfChunk = Callable[[Tensor, Tensor, LossTerms, int], tuple[Tensor, Tensor, Tensor]]


def fused_losses(
    by: str, hidden: Tensor, head: nn.Linear, labels: Tensor, terms: LossTerms, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective (scalar with a gradient), cross entropy [rows, length] and squared log normalizers [rows, length],
    both without. Gradients of the head are summed in fp32. Nothing waits for the device.

    by: `chunked`, torch's functions on any device, or `liger`, its Triton kernel, which reads logits twice and writes
    their gradient over them. hidden: [rows, length, width] in the type that the product is to have; labels: [rows,
    length]. count: trained labels of the batch. Squares are 0 under `liger` where there is no z-loss.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    of_chunk = {"chunked": _by_torch, "liger": _by_liger}[by]
    losses = _FusedLoss.apply(flat, head.weight, head.bias, labels.reshape(-1), terms, count, of_chunk)
    objective, of_labels, squares = losses
    return objective, of_labels.view(labels.shape), squares.view(labels.shape)


def chunk_rows(vocabulary: int, device: str) -> int:
    """Tokens whose logits are there at once."""
    rows = max(1, CHUNK_BYTES[device] // (4 * vocabulary))
    return rows if rows < _ROWS_OF_A_TILE else rows // _ROWS_OF_A_TILE * _ROWS_OF_A_TILE


class _FusedLoss(torch.autograd.Function):
    """(sum of cross entropy + z_loss times the squared log normalizers) / count, gradients computed in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        terms: LossTerms,
        count: int,
        of_chunk: OfChunk,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, squares = (torch.empty(len(labels), device=hidden.device) for _ in range(2))
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        matrix, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        rows = chunk_rows(len(weight), hidden.device.type)
        for first in range(0, len(labels), rows):
            part = slice(first, first + rows)
            logits = torch.nn.functional.linear(hidden[part], matrix, shift)
            losses[part], squares[part], gradient = of_chunk(logits, labels[part], terms, count)
            torch.mm(gradient, matrix, out=of_hidden[part])
            _add_product(of_weight, gradient.t(), hidden[part])
            if of_bias is not None:
                of_bias += gradient.sum(dim=0, dtype=torch.float32)
        # A head that was gathered from shards as bf16 is given its gradient as that.
        ctx.save_for_backward(
            of_hidden, of_weight.to(weight.dtype), None if of_bias is None else of_bias.to(bias.dtype)
        )
        objective = (losses.sum() + terms.z_loss * squares.sum()) / count
        ctx.mark_non_differentiable(losses, squares)
        return objective, losses, squares

    @staticmethod
    def backward(ctx: Any, of_objective: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # In place: the gradient of a large output head is a gigabyte, and nobody else has it.
        scaled = [None if saved is None else saved.mul_(of_objective.to(saved.dtype)) for saved in ctx.saved_tensors]
        return *scaled, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total [n, m], fp32, += a [n, k] @ b [k, m]. On a GPU products of bf16 are added unrounded."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


def _by_liger(logits: Tensor, labels: Tensor, terms: LossTerms, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Liger's kernel alone. Its own function around it waits for the device (it counts the labels and looks at the
    incoming gradient), passes over the head's gradient once more, and gives losses of labels only by computing logits
    twice."""
    from liger_kernel.ops.cross_entropy import MAX_FUSED_SIZE, liger_cross_entropy_kernel

    rows, vocabulary = logits.shape
    means, z_means = (torch.zeros(rows, device=logits.device) for _ in range(2))  # what is ignored stays 0
    liger_cross_entropy_kernel[(rows,)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=labels,
        Y_stride=labels.stride(0),
        weight_ptr=None,
        loss_ptr=means,
        z_loss_ptr=z_means,
        loss_stride=1,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=vocabulary,
        n_non_ignore=float(count),  # an int would be compiled for anew, by what divides it
        sum_non_ignore_weight=1.0,
        weight_sum=0.0,
        ignore_index=IGNORED,
        lse_square_scale=terms.z_loss,
        label_smoothing=terms.label_smoothing,
        reduction="mean",
        softcap=None,
        RETURN_Z_LOSS=True,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=min(MAX_FUSED_SIZE, 1 << (vocabulary - 1).bit_length()),
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=True,
        num_warps=16 if torch.version.hip else 32,  # as Liger's own functions launch it
    )
    squares = z_means * (count / terms.z_loss) if terms.z_loss else z_means
    return (means - z_means) * count, squares, logits


def _by_torch(logits: Tensor, labels: Tensor, terms: LossTerms, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """By the formulas of `train.loss`."""
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
