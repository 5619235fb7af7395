"""The one endless document sequence of a (source, data seed).

Epoch after epoch, each a permutation of the pool, so nothing repeats before the pool is used up and nothing is skipped.
A position in it is an ordinal: document 0, 1, 2, … as served.

Order, version 1. The permutation of epoch e under seed s is the stable argsort of `documents` 64-bit words drawn from
numpy's Philox bit generator (whose raw stream numpy guarantees across versions, NEP 19; `Generator.permutation` is
not), keyed with the first 128 bits of SHA-256 of "document order 1 <identity> <s> <e>".

Reshuffle. From ordinal r on under seed s': documents before r stay; what is left of the running epoch comes in the
order in which the permutation of (s', that epoch) has it; later epochs are permutations under s'.

Rearrangement. The documents of an interval of one epoch change places (packing served some of them before others).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

ORDER_VERSION = 1
Reshuffle = tuple[int, int]
"""(ordinal, seed): the seed that orders everything from this ordinal on."""
Moved = tuple[int, tuple[int, ...]]
"""(ordinal, documents): the documents from this ordinal on, in the order in which they come now."""


def permutation(identity: str, seed: int, epoch: int, documents: int) -> np.ndarray:
    """[documents] int64: the order of one epoch. A function of its arguments alone, on every machine."""
    words = hashlib.sha256(f"document order {ORDER_VERSION} {identity} {seed} {epoch}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(words[:16], "big"))
    return np.argsort(stream.random_raw(documents), kind="stable")


class DocumentSequence:
    """The sequence of one source. reshuffles: ascending ordinals, the first one 0 with the seed it begins under.

    moved: in the order in which it came about; of epochs that are over nothing is kept.
    """

    def __init__(
        self, identity: str, documents: int, reshuffles: Sequence[Reshuffle], moved: Sequence[Moved] = ()
    ) -> None:
        ordinals = [ordinal for ordinal, _ in reshuffles]
        if not ordinals or ordinals[0] != 0 or ordinals != sorted(set(ordinals)):
            raise ValueError(f"reshuffles {list(reshuffles)} do not ascend from ordinal 0")
        self.identity = identity
        self.documents = documents
        self.reshuffles = tuple((int(ordinal), int(seed)) for ordinal, seed in reshuffles)
        self.moved = tuple((int(ordinal), tuple(order)) for ordinal, order in moved)
        self._epochs: dict[int, np.ndarray] = {}

    def served(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] int64: the documents at ordinals start … stop - 1."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.documents)
            last = min(self.documents, first + stop - start)
            parts.append(self._epoch(epoch)[first:last])
            start += last - first
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def reshuffled(self, ordinal: int, seed: int) -> DocumentSequence:
        """The same sequence up to `ordinal`, ordered by `seed` from there on."""
        kept = [(start, old) for start, old in self.reshuffles if start < ordinal]
        if not kept or kept[-1][1] != seed:  # a seed that goes on orders nothing anew
            kept.append((ordinal, seed))
        return DocumentSequence(self.identity, self.documents, kept, self.moved)

    def rearranged(self, ordinal: int, documents: Sequence[int]) -> DocumentSequence:
        """The same sequence with `documents`, which stand at `ordinal` and after it in one epoch, in this order."""
        epoch_start = ordinal // self.documents * self.documents
        kept = [pair for pair in self.moved if pair[0] >= epoch_start]
        return DocumentSequence(self.identity, self.documents, self.reshuffles, [*kept, (ordinal, tuple(documents))])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) >= 2:  # the running epoch and the next one are all that is ever needed
                self._epochs.clear()
            self._epochs[epoch] = self._ordered(epoch)
        return self._epochs[epoch]

    def _ordered(self, epoch: int) -> np.ndarray:
        start = epoch * self.documents
        seed = next(seed for ordinal, seed in reversed(self.reshuffles) if ordinal <= start)
        order = permutation(self.identity, seed, epoch, self.documents)
        inside: list[tuple[int, int, Any]] = [
            (at, 0, by) for at, by in self.reshuffles if start < at < start + self.documents
        ]
        # What is moved at an ordinal was served after a reshuffle there, and before one at any later ordinal.
        for at, _, change in sorted([*inside, *((at, 1, by) for at, by in self.moved)], key=lambda event: event[:2]):
            if not start <= at < start + self.documents:
                continue
            if isinstance(change, tuple):
                order[at - start : at - start + len(change)] = change
                continue
            kept = order[: at - start]
            left = np.ones(self.documents, dtype=bool)
            left[kept] = False
            fresh = permutation(self.identity, change, epoch, self.documents)
            order = np.concatenate([kept, fresh[left[fresh]]])
        return order
