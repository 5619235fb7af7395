"""Cross entropy weighted by tokens: every trained label of a batch counts the same, however the batch is cut.

The loss of a batch is the sum over all its trained labels divided by their number. Micro-batches add up sums, so the
gradient does not depend on how many there are; the mean of micro-batch means would weigh a label by the number of
labels that happen to stand beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100


class _TokenLoss(torch.autograd.Function):
    """Negative log-likelihood per position; its backward turns the forward's probabilities into the gradient, in place.

    With p = softmax(logits), log sum exp(logits) = max logit - log(max p), where max p is never below 1 / vocabulary:
    exact also where the label's own probability vanishes. d nll / d logits = p - onehot. Against log_softmax and
    nll_loss this takes the exponential once instead of twice and makes one tensor of the logits' size instead of three,
    the largest of a small model's step (measured at 512 x 1024 on a CPU: a fifth faster).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        trained = labels != IGNORED
        target = torch.where(trained, labels, 0).unsqueeze(-1)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        normalizer = logits.amax(dim=-1, keepdim=True) - probabilities.amax(dim=-1, keepdim=True).log()
        ctx.dtype = logits.dtype
        ctx.probabilities = probabilities
        ctx.save_for_backward(target, trained)
        return (normalizer - logits.gather(-1, target)).squeeze(-1).mul_(trained)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        target, trained = ctx.saved_tensors
        weight = (gradient * trained).unsqueeze(-1)
        logits_gradient = ctx.probabilities.mul_(weight)
        del ctx.probabilities  # it is the gradient now: a second backward would be wrong, and fails
        logits_gradient.scatter_(-1, target, logits_gradient.gather(-1, target) - weight)
        return logits_gradient.to(ctx.dtype), None


class _TokenLossAndNormalizer(torch.autograd.Function):
    """`_TokenLoss` and the squared log normalizer beside it, both from one softmax.

    With Z = sum exp(logits), d (log Z)^2 / d logits = 2 log Z p, so both gradients are multiples of p and onehot.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        trained = labels != IGNORED
        target = torch.where(trained, labels, 0).unsqueeze(-1)
        probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
        normalizer = logits.amax(dim=-1, keepdim=True) - probabilities.amax(dim=-1, keepdim=True).log()
        ctx.dtype = logits.dtype
        ctx.probabilities = probabilities
        ctx.save_for_backward(target, trained, normalizer)
        losses = (normalizer - logits.gather(-1, target)).squeeze(-1).mul_(trained)
        return losses, normalizer.squeeze(-1).square().mul_(trained)

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, of_square: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        target, trained, normalizer = ctx.saved_tensors
        weight = (of_loss * trained).unsqueeze(-1)
        pull = (of_square * trained).unsqueeze(-1) * (2.0 * normalizer)
        logits_gradient = ctx.probabilities.mul_(weight + pull)
        del ctx.probabilities  # it is the gradient now: a second backward would be wrong, and fails
        logits_gradient.scatter_(-1, target, logits_gradient.gather(-1, target) - weight)
        return logits_gradient.to(ctx.dtype), None


def token_losses_and_squares(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`token_losses`, and of every label (log Z)^2 with Z the softmax's normalizer, 0 where the label is -100.

    The mean of the squares times a weight (`optimizer.z_loss`, 1e-4 in PaLM, 2204.02311, section 5; 1e-5 in Olmo 3)
    is the z-loss: it keeps the logits from drifting. Both float32 [...]; the backward of both may run once.
    """
    losses, squares = _TokenLossAndNormalizer.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    return losses.view(labels.shape), squares.view(labels.shape)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of every label, 0 where the label is -100.

    logits: [..., vocabulary], any floating type; labels: int64 [...], already shifted (labels[i] follows token i).
    Returns float32 [...]. Its backward may run once.
    """
    losses = _TokenLoss.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    assert isinstance(losses, Tensor)
    return losses.view(labels.shape)
