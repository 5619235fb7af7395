"""The training loop: one `update` is one batch, one look at the gradients, one step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.data.loader import Batch, Loader
from harness.plan.schedule import rate
from harness.train.average import WeightAverage
from harness.train.loss import IGNORED, token_losses, token_losses_and_squares
from harness.train.numerics import Numerics, Precision, attention_dtype
from harness.train.optimizer import gradient_norm, trained_parameters, update
from harness.train.packing import document_mask, single_mask_serves
from harness.train.ranks import ALONE, Ranks
from harness.train.spikes import SpikeWindow

Piece = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """The figures of one update.

    tokens, step: of the path, after it. loss: nats per trained label. grad_norm: before clipping. labels: trained in
    the batch. finite: whether loss and gradients were; if not, the weights were left as they were before it.
    z_loss: the weighted z-loss that was trained on beside `loss`, None without one. skipped: it was a spike, and
    weights and optimizer were left as they were.
    """

    tokens: int
    step: int
    loss: float
    loss_by_source: Mapping[str, float]
    grad_norm: float
    lr: float
    labels: int
    finite: bool
    z_loss: float | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class _Unseen:
    """An update whose figures are still on the device: figures [rows + 3], summed loss of each row, z-loss, gradient
    norm and whether it was skipped.

    z_loss: whether there was one. labels, source: [rows], trained labels of each row and its source; counted on the
    host, where the batch was made.
    """

    tokens: int
    step: int
    lr: float
    labels: list[int]
    source: list[int]
    z_loss: bool
    figures: Tensor


class Loop:
    """Training along a path, from where the loader is. Nothing random happens in it, and nothing waits for the device.

    Once a loss or a gradient is not finite, that update and all later ones leave weights and optimizer alone; the next
    `look` tells.

    Of several ranks each runs its part of a batch's rows; gradients and figures are those of the whole batch on all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        loader: Loader,
        pieces: Sequence[Piece],
        numerics: Numerics,
        average: WeightAverage | None = None,
        ranks: Ranks = ALONE,
        spikes: SpikeWindow | None = None,
    ) -> None:
        """pieces: the path from token 0, as in segment.json. Training may go on to the end of the last one.

        average: of the model's weights, to be kept up to date. ranks: who trains with this process. spikes: by which
        updates are left out, None for none.
        """
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.pieces = pieces
        self.numerics = numerics
        self.average = average
        self.spikes = spikes
        self._ranks = ranks
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
        labels = (batch.labels != IGNORED).sum(axis=1).tolist()
        losses, z_loss = self._accumulate_gradients(batch, science, max(1, sum(labels)))
        of_batch = self._over_ranks(losses, z_loss, len(labels))
        norm = gradient_norm(self._parameters)
        figures = torch.cat([of_batch, norm.unsqueeze(0)])
        self._broken = torch.maximum(self._broken, (~torch.isfinite(figures).all()).float())
        lr = rate(science["lr"], tokens, science["batch_tokens"])
        skip, left_alone = self._skip(figures, max(1, sum(labels)))
        update(self.optimizer, lr, science["optimizer"]["clip"], norm, left_alone)
        if self.average is not None:
            self.average.update(left_alone)
        self.step += 1
        with_z = bool(science["optimizer"].get("z_loss"))
        source = batch.source.tolist()
        figures = torch.cat([figures, skip.unsqueeze(0)])
        self._unseen.append(_Unseen(self.loader.tokens, self.step, lr, labels, source, with_z, figures))

    def _skip(self, figures: Tensor, labels: int) -> tuple[Tensor, Tensor]:
        """Whether this update is a spike, and whether it leaves weights and optimizer alone: 0 or 1 on the device.

        figures: [rows + 2], as in `_Unseen` without the last.
        """
        if self.spikes is None:
            return torch.zeros_like(self._broken), self._broken
        skip = self.spikes.see(figures[:-2].sum() / labels, figures[-1], self._broken)
        return skip, torch.maximum(skip, self._broken)

    def _accumulate_gradients(
        self, batch: Batch, science: Mapping[str, Any], labels: int
    ) -> tuple[list[Tensor], Tensor]:
        """This rank's part of the gradients of the mean loss over the batch's labels, z-loss included.

        Returns the summed cross entropy of each of its rows, by micro-batch, and their z-loss (0 without one).
        """
        losses = []
        z_weight = science["optimizer"].get("z_loss", 0.0)
        z_loss = torch.zeros((), device=self._device)
        rows = self.numerics.rows_per_forward(science["batch_tokens"], science["context"]["length"])
        part = self._ranks.part(len(batch.input_ids))
        for first in range(part.start, part.stop, rows):
            micro = slice(first, min(first + rows, part.stop))
            logits = self._logits(batch.input_ids[micro], batch.position_ids[micro], science["precision"])
            targets = self._put(batch.labels[micro])
            if z_weight:
                of_labels, squares = token_losses_and_squares(logits, targets)
                of_rows, of_squares = of_labels.sum(dim=1), squares.sum() * (z_weight / labels)
                (of_rows.sum() / labels + of_squares).backward()
                z_loss += of_squares.detach()
            else:
                of_rows = token_losses(logits, targets).sum(dim=1)
                (of_rows.sum() / labels).backward()
            losses.append(of_rows.detach())
        return losses, z_loss

    def _over_ranks(self, losses: list[Tensor], z_loss: Tensor, rows: int) -> Tensor:
        """[rows + 1]: the summed cross entropy of each row of the batch, and its z-loss. Sums the gradients, too."""
        own = torch.cat([*losses, z_loss.unsqueeze(0)])
        if self._ranks.world == 1:
            return own
        figures = torch.zeros(rows + 1, device=self._device)
        figures[self._ranks.part(rows)], figures[-1] = own[:-1], own[-1]
        self._ranks.sum_gradients(self._parameters, figures)
        return figures

    def checksum(self) -> int:
        """Of the bits of all weights, below 2^62: equal weights have equal ones. Waits for the device."""
        sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in self._parameters]
        return int(torch.stack(sums).sum()) % (1 << 62)

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
        fetched = iter(torch.cat([unseen.figures for unseen in self._unseen]).tolist())
        seen = []
        for unseen in self._unseen:
            losses = [next(fetched) for _ in unseen.source]
            z_loss, norm, skipped = next(fetched), next(fetched), next(fetched) == 1
            seen.append(replace(_update(unseen, losses, z_loss, norm, self.loader.source_names), skipped=skipped))
            if not seen[-1].finite:
                break
        self._unseen.clear()
        return seen


def _update(unseen: _Unseen, losses: list[float], z_loss: float, norm: float, names: Sequence[str]) -> Update:
    """The figures of one update; losses: summed, of each row."""
    by_source, labels = [0.0] * len(names), [0] * len(names)
    for source, loss, trained in zip(unseen.source, losses, unseen.labels, strict=True):
        by_source[source] += loss
        labels[source] += trained
    total = sum(losses)
    return Update(
        tokens=unseen.tokens,
        step=unseen.step,
        loss=total / max(1, sum(labels)),
        loss_by_source={name: loss / n for name, loss, n in zip(names, by_source, labels, strict=True) if n},
        grad_norm=norm,
        lr=unseen.lr,
        labels=sum(labels),
        finite=math.isfinite(total) and math.isfinite(z_loss) and math.isfinite(norm),
        z_loss=z_loss if unseen.z_loss else None,
    )


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
