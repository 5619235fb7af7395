"""The training loop: one `update` is one batch, one look at the gradients, one step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.data.loader import Batch, Loader
from harness.plan.schedule import rate
from harness.train.loss import IGNORED, sums_by_source, token_losses
from harness.train.numerics import Numerics, Precision, attention_dtype
from harness.train.optimizer import gradient_norm, trained_parameters, update
from harness.train.packing import document_mask, single_mask_serves

Piece = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """The figures of one update.

    tokens, step: of the path, after it. loss: nats per trained label. grad_norm: before clipping. labels: trained in
    the batch. finite: whether loss and gradients were; if not, the weights were left as they were before it.
    """

    tokens: int
    step: int
    loss: float
    loss_by_source: Mapping[str, float]
    grad_norm: float
    lr: float
    labels: int
    finite: bool


@dataclass(frozen=True, slots=True)
class _Unseen:
    """An update whose figures are still on the device. figures: [sources + 1], summed losses and the gradient norm."""

    tokens: int
    step: int
    lr: float
    labels: Sequence[int]
    figures: Tensor


class Loop:
    """Training along a path, from where the loader is. Nothing random happens in it, and nothing waits for the device.

    Once a loss or a gradient is not finite, that update and all later ones leave weights and optimizer alone; the next
    `look` tells.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.AdamW,
        loader: Loader,
        pieces: Sequence[Piece],
        numerics: Numerics,
    ) -> None:
        """pieces: the path from token 0, as in segment.json. Training may go on to the end of the last one."""
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.pieces = pieces
        self.numerics = numerics
        self.step = steps_before(pieces, loader.tokens)
        self._parameters = [parameter for _, parameter in trained_parameters(model)]
        self._device = self._parameters[0].device
        self._one_mask = single_mask_serves(model.config)
        self._broken = torch.zeros((), device=self._device)
        self._unseen: list[_Unseen] = []

    @property
    def tokens(self) -> int:
        """Path tokens trained so far: where the next batch begins."""
        return self.loader.tokens

    @property
    def unseen(self) -> int:
        """Updates since the last `look`."""
        return len(self._unseen)

    def update(self) -> None:
        """Consume one batch."""
        tokens = self.loader.tokens
        science = piece_at(self.pieces, tokens)["science"]
        batch = self.loader.next()
        labels = labels_by_source(batch, len(self.loader.source_names))
        losses = self._accumulate_gradients(batch, science, max(1, sum(labels)))
        norm = gradient_norm(self._parameters)
        figures = torch.cat([losses, norm.unsqueeze(0)])
        self._broken = torch.maximum(self._broken, (~torch.isfinite(figures).all()).float())
        lr = rate(science["lr"], tokens, science["batch_tokens"])
        update(self.optimizer, lr, science["optimizer"]["clip"], norm, self._broken)
        self.step += 1
        self._unseen.append(_Unseen(self.loader.tokens, self.step, lr, labels, figures))

    def _accumulate_gradients(self, batch: Batch, science: Mapping[str, Any], labels: int) -> Tensor:
        """Gradients of the mean loss over the batch's labels. Returns the summed loss of each source, [sources]."""
        losses = torch.zeros(len(self.loader.source_names), device=self._device)
        rows = self.numerics.rows_per_forward(science["batch_tokens"], science["context"]["length"])
        for first in range(0, len(batch.input_ids), rows):
            micro = slice(first, first + rows)
            logits = self._logits(batch.input_ids[micro], batch.position_ids[micro], science["precision"])
            nll = token_losses(logits, self._put(batch.labels[micro]))
            (nll.sum() / labels).backward()
            losses += sums_by_source(nll.detach(), self._put(batch.source[micro]), len(losses))
        return losses

    def _logits(self, input_ids: np.ndarray, position_ids: np.ndarray, precision: Precision) -> Tensor:
        """[rows, length, vocabulary]; positions that restart keep documents apart."""
        positions = torch.from_numpy(position_ids)
        mask = document_mask(positions, self._device, attention_dtype(precision)) if self._one_mask else None
        with self.numerics.autocast(precision):
            output = self.model(
                input_ids=self._put(input_ids),
                position_ids=positions.to(self._device, non_blocking=True),
                attention_mask=mask,
                use_cache=False,
            )
        logits: Tensor = output.logits
        return logits

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)

    def look(self) -> list[Update]:
        """The figures of the updates since the last look, up to the first that was not finite. Waits for the device."""
        if not self._unseen:
            return []
        figures = torch.stack([unseen.figures for unseen in self._unseen]).tolist()
        seen = []
        for unseen, values in zip(self._unseen, figures, strict=True):
            seen.append(_update(unseen, values, self.loader.source_names))
            if not seen[-1].finite:
                break
        self._unseen.clear()
        return seen


def _update(unseen: _Unseen, figures: Sequence[float], names: Sequence[str]) -> Update:
    *losses, norm = figures
    return Update(
        tokens=unseen.tokens,
        step=unseen.step,
        loss=sum(losses) / max(1, sum(unseen.labels)),
        loss_by_source={
            name: loss / labels for name, loss, labels in zip(names, losses, unseen.labels, strict=True) if labels
        },
        grad_norm=norm,
        lr=unseen.lr,
        labels=sum(unseen.labels),
        finite=all(math.isfinite(value) for value in figures),
    )


def labels_by_source(batch: Batch, sources: int) -> list[int]:
    """Trained labels of each source in a batch; counted on the host, where the batch was made."""
    counts = (batch.labels != IGNORED).sum(axis=1)
    return np.bincount(batch.source, weights=counts, minlength=sources).astype(np.int64).tolist()


def piece_at(pieces: Sequence[Piece], tokens: int) -> Piece:
    """The piece that holds the update which begins at `tokens`."""
    for piece in pieces:
        if piece["start"] <= tokens < piece["end"]:
            return piece
    raise ValueError(f"no piece of the path holds token {tokens}")


def steps_before(pieces: Sequence[Piece], tokens: int) -> int:
    """Updates that a path has made when it has consumed `tokens`."""
    return sum(
        (min(piece["end"], tokens) - piece["start"]) // piece["science"]["batch_tokens"]
        for piece in pieces
        if piece["start"] < tokens
    )
