"""From the tokens of a micro-batch to its losses: all of the model that a training step runs forward.

It is a module around the model, so that whatever wraps a module (compilation, sharding) can wrap the whole forward,
the output head and the loss included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.train.attention import Attention, to_device
from harness.train.fused import fused_losses
from harness.train.kernels import output_head
from harness.train.loss import LossTerms, token_losses, token_losses_and_squares
from harness.train.numerics import Numerics, Precision, attention_dtype


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of a batch. input_ids, labels: int64 [rows, length], on the device; labels are shifted already, -100 for
    none. position_ids: int64 [rows, length], on the host; positions that restart keep documents apart. source: int64
    [rows], on the host, the source of each row."""

    input_ids: Tensor
    labels: Tensor
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

    def __init__(
        self, model: PreTrainedModel, context: Mapping[str, Any], precision: Precision, numerics: Numerics, sources: int
    ) -> None:
        """context: of the stage, `documents` and `length`. sources: how many there are, `MicroBatch.source` counts
        them. Raises UserError where the model cannot be run like that."""
        super().__init__()
        self.model = model
        self.numerics = numerics
        self._precision = precision
        self._sources = sources
        self._dtype = attention_dtype(precision)
        self.attention = Attention(model, context, numerics.device, self._dtype)
        self._loss = numerics.kernels.fused_linear_cross_entropy
        if self._loss != "torch":
            output_head(model)  # raises where there is none to fuse

    def forward(self, micro: MicroBatch, terms: LossTerms, labels: int) -> Losses:
        """labels: trained labels of the whole batch, by which sums are divided."""
        if self._loss == "torch":
            logits = self.logits(micro.input_ids, micro.position_ids)
            return self._from_logits(logits, micro, terms, labels)
        hidden = self.hidden(micro.input_ids, micro.position_ids).to(self._dtype)
        head = output_head(self.model)
        objective, losses, squares = fused_losses(self._loss, hidden, head, micro.labels, terms, labels)
        z_loss = squares.sum() * (terms.z_loss / labels)
        return Losses(objective, self._by_source(losses.sum(dim=1), micro.source), z_loss)

    def _from_logits(self, logits: Tensor, micro: MicroBatch, terms: LossTerms, labels: int) -> Losses:
        z_loss = torch.zeros((), device=logits.device)
        if terms.z_loss:
            of_labels, squares = token_losses_and_squares(logits, micro.labels, terms.label_smoothing)
            z_loss = squares.sum() * (terms.z_loss / labels)
        else:
            of_labels = token_losses(logits, micro.labels, terms.label_smoothing)
        of_rows = of_labels.sum(dim=1)
        objective = of_rows.sum() / labels
        if terms.z_loss:
            objective = objective + z_loss
        return Losses(objective, self._by_source(of_rows.detach(), micro.source), z_loss.detach())

    def logits(self, input_ids: Tensor, position_ids: np.ndarray) -> Tensor:
        """[rows, length, vocabulary], in the type of the matrix products."""
        given = self.attention.arguments(position_ids, input_ids.device)
        with self.numerics.autocast(self._precision):
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False, **given).logits
        return logits

    def hidden(self, input_ids: Tensor, position_ids: np.ndarray) -> Tensor:
        """[rows, length, width]: what the output head is given."""
        given = self.attention.arguments(position_ids, input_ids.device)
        with self.numerics.autocast(self._precision):
            states: Tensor = self.model.base_model(input_ids=input_ids, use_cache=False, **given).last_hidden_state
        return states

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _by_source(self, of_rows: Tensor, source: np.ndarray) -> Tensor:
        """[sources]: the sum of the rows of each."""
        sums = torch.zeros(self._sources, device=of_rows.device)
        return sums.index_add_(0, self.put(source), of_rows)

    def put(self, values: np.ndarray) -> Tensor:
        """A host's array on the device."""
        return to_device(torch.from_numpy(values), self.device)
