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
    """Negative log-likelihood per position; its backward turns what the forward computed into the gradient, in place.

    With m the largest logit and e = exp(logits - m): nll = m + log(sum e) - logit of the label, and
    d nll / d logits = e / sum e - onehot. Against log_softmax and nll_loss this takes the exponential once instead of
    twice and allocates one tensor of the logits' size instead of three, the largest ones of a small model's step.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.dtype = logits.dtype
        logits = logits.float()
        trained = labels != IGNORED
        target = torch.where(trained, labels, 0).unsqueeze(-1)
        largest = logits.amax(dim=-1, keepdim=True)
        exponentials = (logits - largest).exp_()
        total = exponentials.sum(dim=-1, keepdim=True)
        ctx.exponentials = exponentials
        ctx.save_for_backward(target, trained, total)
        return (largest + total.log() - logits.gather(-1, target)).squeeze(-1).mul_(trained)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        target, trained, total = ctx.saved_tensors
        weight = (gradient * trained).unsqueeze(-1)
        logits_gradient = ctx.exponentials.mul_(weight / total)
        del ctx.exponentials  # it is the gradient now: a second backward would be wrong, and fails
        logits_gradient.scatter_(-1, target, logits_gradient.gather(-1, target) - weight)
        return logits_gradient.to(ctx.dtype), None


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood in nats of every label, 0 where the label is -100.

    logits: [..., vocabulary], any floating type; labels: int64 [...], already shifted (labels[i] follows token i).
    Returns float32 [...]. Its backward may run once.
    """
    losses = _TokenLoss.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    assert isinstance(losses, Tensor)
    return losses.view(labels.shape)


def sums_by_source(losses: Tensor, source: Tensor, sources: int) -> Tensor:
    """Summed loss of each source: losses [rows, length], source int64 [rows] → [sources]."""
    belongs = (source.unsqueeze(0) == torch.arange(sources, device=source.device).unsqueeze(1)).to(losses.dtype)
    return belongs @ losses.sum(dim=1)
