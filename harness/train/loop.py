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
from harness.train.average import WeightAverage
from harness.train.forward import Forward, MicroBatch
from harness.train.loss import IGNORED, LossTerms
from harness.train.numerics import Numerics
from harness.train.optimizer import update
from harness.train.parallel import Weights, Whole
from harness.train.ranks import ALONE, Ranks

Piece = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """The figures of one update.

    tokens, step: of the path, after it. loss: nats per trained label. grad_norm: before clipping. labels: trained in
    the batch. finite: whether loss and gradients were; if not, the weights were left as they were before it.
    z_loss: the weighted z-loss that was trained on beside `loss`, None without one.
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


@dataclass(frozen=True, slots=True)
class _Unseen:
    """An update whose figures are still on the device: figures [sources + 2], summed loss of each source, z-loss and
    gradient norm.

    z_loss: whether there was one. labels: [sources], trained labels of each; counted on the host, where the batch was
    made.
    """

    tokens: int
    step: int
    lr: float
    labels: list[int]
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
        forward: Forward | None = None,
        weights: Weights | None = None,
    ) -> None:
        """pieces: the path from token 0, as in segment.json. Training may go on to the end of the last one.

        average: of the model's weights, to be kept up to date. ranks: who trains with this process. forward, weights:
        of a model that is sharded; without, each rank holds the whole one.
        """
        self.model = model
        self.optimizer = optimizer
        self.loader = loader
        self.pieces = pieces
        self.numerics = numerics
        self.average = average
        self._ranks = ranks
        self.step = steps_before(pieces, loader.tokens)
        self.weights = weights or Whole(model, ranks)
        self._device = self.weights.parameters[0].device
        self.forward = forward or Forward(model, numerics, len(loader.source_names))
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
        with self.weights.exposed():
            self._update()

    def _update(self) -> None:
        tokens = self.loader.tokens
        science = piece_at(self.pieces, tokens)["science"]
        batch = self.loader.next()
        labels = self._labels(batch)
        own = self._accumulate_gradients(batch, science, max(1, sum(labels)))
        of_batch, norm = self.weights.reduce(own)
        figures = torch.cat([of_batch, norm.unsqueeze(0)])
        self._broken = torch.maximum(self._broken, (~torch.isfinite(figures).all()).float())
        lr = rate(science["lr"], tokens, science["batch_tokens"])
        update(self.optimizer, lr, science["optimizer"]["clip"], norm, self._broken)
        self.weights.updated()
        if self.average is not None:
            self.average.update(self._broken)
        self.step += 1
        with_z = bool(science["optimizer"].get("z_loss"))
        self._unseen.append(_Unseen(self.loader.tokens, self.step, lr, labels, with_z, figures))

    def _labels(self, batch: Batch) -> list[int]:
        """Trained labels of each source in a batch."""
        of_rows = (batch.labels != IGNORED).sum(axis=1)
        counts = np.bincount(batch.source, weights=of_rows, minlength=len(self.loader.source_names))
        return [int(count) for count in counts]

    def _accumulate_gradients(self, batch: Batch, science: Mapping[str, Any], labels: int) -> Tensor:
        """This rank's part of the gradients of the mean loss over the batch's labels, z-loss included.

        Returns [sources + 1]: the summed cross entropy of its rows by source, and their z-loss (0 without one).
        """
        terms = LossTerms.of(science)
        figures = torch.zeros(len(self.loader.source_names) + 1, device=self._device)
        rows = self.numerics.rows_per_forward(science["batch_tokens"], science["context"]["length"])
        part = self._ranks.part(len(batch.input_ids))
        for first in range(part.start, part.stop, rows):
            micro = slice(first, min(first + rows, part.stop))
            inside = MicroBatch(
                batch.input_ids[micro], batch.labels[micro], batch.position_ids[micro], batch.source[micro]
            )
            self.weights.before_micro_batch(last=micro.stop == part.stop)
            losses = self.forward(inside, terms, labels, science["precision"])
            losses.objective.backward()
            figures += torch.cat([losses.by_source, losses.z_loss.unsqueeze(0)])
        return figures

    def look(self) -> list[Update]:
        """The figures of the updates since the last look, up to the first that was not finite. Waits for the device."""
        if not self._unseen:
            return []
        fetched = iter(torch.cat([unseen.figures for unseen in self._unseen]).tolist())
        seen = []
        for unseen in self._unseen:
            losses = [next(fetched) for _ in unseen.labels]
            z_loss, norm = next(fetched), next(fetched)
            seen.append(_update(unseen, losses, z_loss, norm, self.loader.source_names))
            if not seen[-1].finite:
                break
        self._unseen.clear()
        return seen


def _update(unseen: _Unseen, losses: list[float], z_loss: float, norm: float, names: Sequence[str]) -> Update:
    """The figures of one update; losses: summed, of each source."""
    total = sum(losses)
    labels = unseen.labels
    return Update(
        tokens=unseen.tokens,
        step=unseen.step,
        loss=total / max(1, sum(labels)),
        loss_by_source={name: loss / n for name, loss, n in zip(names, losses, labels, strict=True) if n},
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
