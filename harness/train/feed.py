"""Batches on the device: a rank's rows of each, copied from pinned memory on a stream of their own, one batch ahead.

A GPU runs behind the process that drives it, so the next batch is made and copied while this one is computed. Whoever
asks where the path is (`tokens`, `cursor`) hears of batches handed out, not of the one in waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.data.cursor import Cursor
from harness.data.loader import Batch, Loader
from harness.data.token_store import TokenSource
from harness.train.forward import MicroBatch
from harness.train.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Fed:
    """A batch as one rank trains on it. rows: this rank's. labels: trained labels of the whole batch by source."""

    rows: MicroBatch
    labels: list[int]

    def micro_batches(self, rows: int) -> list[MicroBatch]:
        """This rank's rows, at most `rows` at a time."""
        all_rows = self.rows
        parts = [slice(first, first + rows) for first in range(0, len(all_rows.source), rows)]
        return [
            MicroBatch(
                all_rows.input_ids[part], all_rows.labels[part], all_rows.position_ids[part], all_rows.source[part]
            )
            for part in parts
        ]


class Feed:
    """What a loop draws its batches from. seconds: spent here so far, in which the device was given nothing."""

    def __init__(
        self, loader: Loader, device: torch.device, part: Callable[[int], slice] = slice, ahead: bool | None = None
    ) -> None:
        """part: this rank's rows of a batch of so many. ahead: whether to keep a batch in waiting; on a GPU unless
        said."""
        self._loader = loader
        self._device = device
        self._part = part
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting: Fed | None = None
        self._at: tuple[int, Cursor] | None = None  # where the path is, while a batch is in waiting
        self.seconds = 0.0

    @property
    def tokens(self) -> int:
        """Path tokens handed out: where the next batch begins."""
        return self._loader.tokens if self._at is None else self._at[0]

    @property
    def source_names(self) -> tuple[str, ...]:
        return self._loader.source_names

    @property
    def sources(self) -> Mapping[str, TokenSource]:
        return self._loader.sources

    def cursor(self) -> Cursor:
        """Where the path is in its data."""
        return self._loader.cursor() if self._at is None else self._at[1]

    def next(self) -> Fed:
        """The batch that begins at `tokens`; moves there. StopIteration at the path's end."""
        began = time.perf_counter()
        fed = self._waiting if self._waiting is not None else self._make()
        self._waiting = self._at = None
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            for tensor in (fed.rows.input_ids, fed.rows.labels):
                tensor.record_stream(torch.cuda.current_stream(self._device))
        self.seconds += time.perf_counter() - began
        return fed

    def prepare(self) -> None:
        """Make the next batch and begin to copy it. Call when the device has been given its work."""
        if not self._ahead or self._waiting is not None:
            return
        at = self._loader.tokens, self._loader.cursor()
        try:
            self._waiting = self._make()
        except StopIteration:
            return
        self._at = at

    def _make(self) -> Fed:
        batch = self._loader.next()
        part = self._part(len(batch.input_ids))
        with torch.cuda.stream(self._stream):  # a block without effect where there is no stream
            rows = MicroBatch(
                self._copied(batch.input_ids[part]),
                self._copied(batch.labels[part]),
                batch.position_ids[part],
                batch.source[part],
            )
        return Fed(rows, self._labels(batch))

    def _copied(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._stream is not None:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _labels(self, batch: Batch) -> list[int]:
        of_rows = (batch.labels != IGNORED).sum(axis=1)
        counts = np.bincount(batch.source, weights=of_rows, minlength=len(self.source_names))
        return [int(count) for count in counts]
