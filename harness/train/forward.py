"""From the tokens of a micro-batch to its losses: all of the model that a training step runs forward.

It is a module around the model, so that whatever wraps a module (compilation, sharding) can wrap the whole forward,
the output head and the loss included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.train.loss import LossTerms, token_losses, token_losses_and_squares
from harness.train.numerics import Numerics, Precision, attention_dtype
from harness.train.packing import document_mask, single_mask_serves


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of a batch, on the host. input_ids, labels, position_ids: int64 [rows, length]; labels are shifted already,
    -100 for none; positions that restart keep documents apart. source: int64 [rows], the source of each row."""

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    source: np.ndarray


@dataclass(frozen=True, slots=True)
class Losses:
    """Of a micro-batch, on the device. objective: what is differentiated, the batch's mean as far as these rows go.

    by_source: [sources] cross entropy summed over the labels of each source, detached. z_loss: the weighted z-loss in
    `objective`, detached; 0 without one.
    """

    objective: Tensor
    by_source: Tensor
    z_loss: Tensor


class Forward(nn.Module):
    """The forward pass of a model's training step."""

    def __init__(self, model: PreTrainedModel, numerics: Numerics, sources: int) -> None:
        """sources: how many there are, `MicroBatch.source` counts them."""
        super().__init__()
        self.model = model
        self.numerics = numerics
        self._sources = sources
        self._one_mask = single_mask_serves(model.config)

    def forward(self, micro: MicroBatch, terms: LossTerms, labels: int, precision: Precision) -> Losses:
        """labels: trained labels of the whole batch, by which sums are divided."""
        logits = self.logits(micro.input_ids, micro.position_ids, precision)
        targets = self._put(micro.labels)
        z_loss = torch.zeros((), device=logits.device)
        if terms.z_loss:
            of_labels, squares = token_losses_and_squares(logits, targets, terms.label_smoothing)
            z_loss = squares.sum() * (terms.z_loss / labels)
        else:
            of_labels = token_losses(logits, targets, terms.label_smoothing)
        of_rows = of_labels.sum(dim=1)
        objective = of_rows.sum() / labels
        if terms.z_loss:
            objective = objective + z_loss
        return Losses(objective, self._by_source(of_rows.detach(), micro.source), z_loss.detach())

    def logits(self, input_ids: np.ndarray, position_ids: np.ndarray, precision: Precision) -> Tensor:
        """[rows, length, vocabulary]; positions that restart keep documents apart."""
        device = self.device
        positions = torch.from_numpy(position_ids)
        mask = document_mask(positions, device, attention_dtype(precision)) if self._one_mask else None
        with self.numerics.autocast(precision):
            output = self.model(
                input_ids=self._put(input_ids),
                position_ids=positions.to(device, non_blocking=True),
                attention_mask=mask,
                use_cache=False,
            )
        logits: Tensor = output.logits
        return logits

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _by_source(self, of_rows: Tensor, source: np.ndarray) -> Tensor:
        """[sources]: the sum of the rows of each."""
        sums = torch.zeros(self._sources, device=of_rows.device)
        return sums.index_add_(0, self._put(source), of_rows)

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
