"""Cross entropy weighted by tokens: every trained label of a batch counts the same, however the batch is cut.

The loss of a batch is the sum over all its trained labels divided by their number. Micro-batches add up sums, so the
gradient does not depend on how many there are; the mean of micro-batch means would weigh a label by the number of
labels that happen to stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What is trained on, as the study says (`optimizer.z_loss`, `optimizer.label_smoothing`).

    z_loss: weight of the squared log normalizer (PaLM, 2204.02311, section 5; 1e-5 in Olmo 3), 0 for none: it keeps the
    logits from drifting. label_smoothing: share e of a label that is spread over the vocabulary (Szegedy et al.,
    1512.00567, section 7): (1 - e) nll(label) + e mean over the vocabulary of nll.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, science: Mapping[str, Any]) -> LossTerms:
        """Those of a piece's science."""
        optimizer = science["optimizer"]
        return cls(float(optimizer.get("z_loss", 0.0)), float(optimizer.get("label_smoothing", 0.0)))


class _TokenLoss(torch.autograd.Function):
    """Cross entropy per position, and with `squares` the squared log normalizer beside it, both from one softmax.

    With p = softmax(logits), log Z = log sum exp(logits) = max logit - log(max p), where max p is never below
    1 / vocabulary: exact also where the label's own probability vanishes. d nll / d logits = p - onehot and
    d (log Z)^2 / d logits = 2 log Z p, so the backward turns the forward's probabilities into the gradient, in place.
    Against log_softmax and nll_loss this takes the exponential once instead of twice and makes one tensor of the
    logits' size instead of three, the largest of a small model's step (measured at 512 x 1024 on a CPU: a fifth
    faster).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, squares: bool
    ) -> tuple[Tensor, Tensor | None]:
        trained = labels != IGNORED
        target = torch.where(trained, labels, 0).unsqueeze(-1)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        normalizer = logits.amax(dim=-1, keepdim=True) - probabilities.amax(dim=-1, keepdim=True).log()
        ctx.dtype, ctx.smoothing = logits.dtype, smoothing
        ctx.probabilities = probabilities
        ctx.save_for_backward(target, trained, normalizer if squares else None)
        losses = normalizer - logits.gather(-1, target)
        if smoothing:
            mean = normalizer - logits.mean(dim=-1, keepdim=True, dtype=torch.float32)
            losses = (1 - smoothing) * losses + smoothing * mean
        losses = losses.squeeze(-1).mul_(trained)
        return losses, normalizer.squeeze(-1).square().mul_(trained) if squares else None

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, of_square: Tensor | None) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        target, trained, normalizer = ctx.saved_tensors
        weight = (of_loss * trained).unsqueeze(-1)
        pull = weight
        if of_square is not None and normalizer is not None:
            pull = weight + (of_square * trained).unsqueeze(-1) * (2.0 * normalizer)
        logits_gradient = ctx.probabilities.mul_(pull)
        del ctx.probabilities  # it is the gradient now: a second backward would be wrong, and fails
        if ctx.smoothing:
            logits_gradient.sub_(weight * (ctx.smoothing / logits_gradient.shape[-1]))
            weight = weight * (1 - ctx.smoothing)
        logits_gradient.scatter_(-1, target, logits_gradient.gather(-1, target) - weight)
        return logits_gradient.to(ctx.dtype), None, None, None


def token_losses_and_squares(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """`token_losses`, and of every label (log Z)^2 with Z the softmax's normalizer, 0 where the label is -100.

    Both float32 [...]; the backward of both may run once.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    losses, squares = _TokenLoss.apply(flat, targets, label_smoothing, True)
    return losses.view(labels.shape), squares.view(labels.shape)


def token_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood in nats of every label, 0 where the label is -100; smoothed where that is asked for.

    logits: [..., vocabulary], any floating type; labels: int64 [...], already shifted (labels[i] follows token i).
    Returns float32 [...]. Its backward may run once.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    losses, _ = _TokenLoss.apply(flat, targets, label_smoothing, False)
    assert isinstance(losses, Tensor)
    return losses.view(labels.shape)
