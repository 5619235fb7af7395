"""The training loop: one `update` is one batch, one look at the gradients, one step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.data.loader import Loader
from harness.plan.schedule import rate
from harness.train.average import WeightAverage
from harness.train.feed import Fed, Feed
from harness.train.forward import Forward
from harness.train.loss import LossTerms
from harness.train.numerics import Numerics
from harness.train.optimizer import update
from harness.train.parallel import Weights, Whole
from harness.train.ranks import ALONE, Ranks
from harness.train.spikes import SpikeWindow
from harness.train.witness import Witness

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
    """An update whose figures are still on the device: figures [sources + 3], summed loss of each source, z-loss,
    gradient norm and whether it was skipped.

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
        spikes: SpikeWindow | None = None,
        forward: Forward | None = None,
        weights: Weights | None = None,
    ) -> None:
        """pieces: the path from token 0, as in segment.json. Training may go on to the end of the last one.

        average: of the model's weights, to be kept up to date. ranks: who trains with this process. spikes: by which
        updates are left out, None for none. forward, weights: of a model that is sharded; without, each rank holds the
        whole one.
        """
        self.model = model
        self.optimizer = optimizer
        self.pieces = pieces
        self.numerics = numerics
        self.average = average
        self.spikes = spikes
        self._ranks = ranks
        self.step = steps_before(pieces, loader.tokens)
        self.weights = weights or Whole(model, ranks)
        self._device = self.weights.parameters[0].device
        self.feed = Feed(loader, self._device, ranks.part)
        self.forward = forward or forward_of(model, pieces, loader, numerics)
        look = numerics.device == "cuda" or not (numerics.compile or numerics.strategy == "fsdp")
        self.witness = Witness(numerics.device, look)
        self._broken = torch.zeros((), device=self._device)
        self._unseen: list[_Unseen] = []

    @property
    def tokens(self) -> int:
        """Path tokens trained so far: where the next batch begins."""
        return self.feed.tokens

    @property
    def unseen(self) -> int:
        """Updates since the last `look`."""
        return len(self._unseen)

    def update(self) -> None:
        """Consume one batch."""
        with self.weights.exposed():
            self._update()
        self.feed.prepare()

    def _update(self) -> None:
        tokens = self.feed.tokens
        science = piece_at(self.pieces, tokens)["science"]
        batch = self.feed.next()
        of_batch, norm = self.weights.reduce(self._accumulate_gradients(batch, science))
        figures = torch.cat([of_batch, norm.unsqueeze(0)])
        self._broken = torch.maximum(self._broken, (~torch.isfinite(figures).all()).float())
        lr = rate(science["lr"], tokens, science["batch_tokens"])
        skip, left_alone = self._skip(figures, max(1, sum(batch.labels)))
        update(self.optimizer, lr, science["optimizer"]["clip"], norm, left_alone)
        self.weights.updated()
        if self.average is not None:
            self.average.update(left_alone)
        self.step += 1
        with_z = bool(science["optimizer"].get("z_loss"))
        figures = torch.cat([figures, skip.unsqueeze(0)])
        self._unseen.append(_Unseen(self.feed.tokens, self.step, lr, batch.labels, with_z, figures))

    def _skip(self, figures: Tensor, labels: int) -> tuple[Tensor, Tensor]:
        """Whether this update is a spike, and whether it leaves weights and optimizer alone: 0 or 1 on the device.

        figures: [sources + 2], as in `_Unseen` without the last.
        """
        if self.spikes is None:
            return torch.zeros_like(self._broken), self._broken
        skip = self.spikes.see(figures[:-2].sum() / labels, figures[-1], self._broken)
        return skip, torch.maximum(skip, self._broken)

    def _accumulate_gradients(self, batch: Fed, science: Mapping[str, Any]) -> Tensor:
        """This rank's part of the gradients of the mean loss over the batch's labels, z-loss included.

        Returns [sources + 1]: the summed cross entropy of its rows by source, and their z-loss (0 without one).
        """
        terms = LossTerms.of(science)
        labels = max(1, sum(batch.labels))
        figures = torch.zeros(len(batch.labels) + 1, device=self._device)
        rows = self.numerics.rows_per_forward(science["batch_tokens"], science["context"]["length"])
        micro_batches = batch.micro_batches(rows)
        for number, micro in enumerate(micro_batches, 1):
            self.weights.before_micro_batch(last=number == len(micro_batches))
            with self.witness.watching():
                losses = self.forward(micro, terms, labels)
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
            z_loss, norm, skipped = next(fetched), next(fetched), next(fetched) == 1
            seen.append(replace(_update(unseen, losses, z_loss, norm, self.feed.source_names), skipped=skipped))
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


def forward_of(model: PreTrainedModel, pieces: Sequence[Piece], loader: Loader, numerics: Numerics) -> Forward:
    """The forward pass of `model` in the stage in which `loader` stands."""
    science = piece_at(pieces, min(loader.tokens, pieces[-1]["end"] - 1))["science"]
    return Forward(model, science["context"], science["precision"], numerics, len(loader.source_names))


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
