"""Updates whose loss or gradient norm is a spike are left out, by what the updates before them looked like.

OLMo-core's SkipStepOptimizer (src/olmo_core/optim/skip_step_optimizer.py): an update is left out when its loss or its
gradient norm is more than `sigma` standard deviations above the mean of the last `window` updates, those that were left
out among them; before half a window has been seen, and before two updates, none is. Theirs forgets its window with the
process. Here it is part of every checkpoint, so that a path has the same spikes wherever it was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.study.errors import UserError

Piece = Mapping[str, Any]
FIGURES = 2  # the loss and the norm of the gradient


class SpikeWindow:
    """The losses and gradient norms of the last updates, and the rule; nothing in it waits for the device.

    The figures lie in a ring: the update with the number n (from 0) in column n % window. Sums run over the columns in
    their order, so that a window that was saved and loaded gives the bits of one that was not.
    """

    def __init__(self, window: int, sigma: float, device: torch.device) -> None:
        """window: updates, at least 2. sigma: standard deviations. Begins empty."""
        self._sigma = sigma
        self._figures = torch.zeros(FIGURES, window, dtype=torch.float64, device=device)
        self._columns = torch.arange(window, device=device)
        self._seen = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def see(self, loss: Tensor, norm: Tensor, broken: Tensor) -> Tensor:
        """Whether an update is a spike, 1 or 0, float32 on the device; its figures enter the window afterwards.

        loss: nats per trained label of the batch, norm: of the gradient before clipping, both scalars on the device.
        broken: 1 where training has diverged; then nothing is a spike and the window stays as it is.
        """
        window = len(self._columns)
        there = self._columns < self._seen
        count = there.sum()
        mean = self._figures.sum(dim=1) / count.clamp(min=1)
        offsets = torch.where(there, self._figures - mean.unsqueeze(1), 0.0)
        deviation = (offsets.square().sum(dim=1) / (count - 1).clamp(min=1)).sqrt()
        figures = torch.stack([loss, norm]).double()
        above = (figures - mean > self._sigma * deviation).any()
        going_on = broken == 0
        spike = above & (self._seen >= max(2, window // 2)) & going_on
        column = (self._columns == self._seen % window) & going_on
        self._figures = torch.where(column, figures.unsqueeze(1), self._figures)
        self._seen += going_on
        self._skipped += spike
        return spike.float()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: figures [2, window] float64, loss and gradient norm; seen and skipped, int64 counts
        since the window began."""
        return {"figures": self._figures, "seen": self._seen, "skipped": self._skipped}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a saved window, bit for bit. Raises UserError when it is of another length."""
        own = self.tensors()
        if set(tensors) != set(own) or any(tensors[name].shape != value.shape for name, value in own.items()):
            raise UserError("the window of losses in the checkpoint is not one of `optimizer.skip_spikes`.")
        for name, value in own.items():
            value.copy_(tensors[name])

    @property
    def skipped(self) -> int:
        """Updates left out since the window began. Waits for the device."""
        return int(self._skipped)


def window_of(pieces: Sequence[Piece], tokens: int, last: int, device: torch.device) -> tuple[SpikeWindow | None, bool]:
    """The empty window of the update that begins at `last` of a path, and whether it goes on with the one at `tokens`.

    It belongs to the path: a stage goes on with it while `skip_spikes` is the same. None: no update is left out.
    """
    settings = settings_at(pieces, last)
    if settings is None:
        return None, False
    window = SpikeWindow(settings["window"], settings["sigma"], device)
    return window, settings_at(pieces, tokens - 1) == settings


def settings_at(pieces: Sequence[Piece], tokens: int) -> Mapping[str, Any] | None:
    """`optimizer.skip_spikes` of the update that begins at `tokens` of a path; None where it is off, or no update."""
    for piece in pieces:
        if piece["start"] <= tokens < piece["end"]:
            settings: Mapping[str, Any] | None = piece["science"]["optimizer"].get("skip_spikes")
            return settings
    return None
