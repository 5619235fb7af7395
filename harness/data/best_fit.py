"""From a source's endless document sequence to rows of whole documents: best-fit-decreasing packing.

Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830), window by window. A document longer than
a row is cut into pieces of a row's length and a rest; the pieces of a window, the longest first, each go into the row
with the least room that still holds them. Only documents that are longer than a row are ever cut; what stays empty at
a row's end is padding: without labels, seen by nothing before it, and in masked rows a document of its own.

A window holds the fewest next documents that fill `WINDOW_ROWS` rows, and ends with the epoch. Its rows come in the
order in which the longest piece of each stands in the sequence: by the earliest piece, rows of many short documents
would come first in every window. Both are part of what `packing: best-fit` means: the rows are a function of (source,
sequence, where the window begins, row length), whoever works them out and wherever the path is cut.

Where a path goes on in another row length, or with another data seed, in the middle of a window, documents of which
nothing was served go back to the sequence, behind those that were begun; what is left of the latter is in the next
window. So nothing is skipped, and nothing is served twice before the pool is used up.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.data.cursor import OpenWindow, SourceCursor
from harness.data.packing import NO_LABEL, Rows
from harness.data.sequence import DocumentSequence
from harness.data.token_store import TokenSource

WINDOW_ROWS = 256
PAD = 0  # any token would do: nothing real sees it, and it has no label
Part = tuple[int, int, int]
"""(document, start, stop): tokens [start, stop) of a document of the source."""


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows of at most `size` tokens, each a list of indices into `lengths`, the longest first; a length of `size` has a
    row to itself.

    Best-fit-decreasing; of equal lengths the earlier comes first, of equally good rows the one that was begun first.
    ValueError for a length above `size`.
    """
    if any(length > size for length in lengths):
        raise ValueError(f"a piece of {max(lengths)} tokens is longer than a row of {size}")
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect_left(rooms, (lengths[index], -1))
        room, row = rooms.pop(at) if at < len(rooms) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        if room > lengths[index]:
            insort(rooms, (room - lengths[index], row))
    return rows


@dataclass(frozen=True, slots=True)
class Window:
    """Documents [first, end) of the sequence (and what was left before them) as rows.

    ordinals: [parts] where each part's document stands in the sequence, -1 for one that was begun before the window.
    rows: lists of indices into parts, ascending.
    """

    first: int
    end: int
    parts: Sequence[Part]
    ordinals: Sequence[int]
    rows: Sequence[Sequence[int]]

    def begun(self, rows: int) -> set[int]:
        """Ordinals of which something stands in the first `rows` rows."""
        return {self.ordinals[index] for row in self.rows[:rows] for index in row} - {-1}


def window(source: TokenSource, sequence: DocumentSequence, at: SourceCursor, length: int) -> Window:
    """The window that begins at a cursor, in rows of `length`."""
    parts, ordinals, end = list(at.left), [-1] * len(at.left), at.document
    tokens = sum(stop - start for _, start, stop in parts)
    epoch_end = (at.document // source.documents + 1) * source.documents
    old_epoch = bool(parts) and at.document % source.documents == 0 and at.token == 0
    while tokens < WINDOW_ROWS * length and end < epoch_end and not old_epoch:
        wanted = 1 + (WINDOW_ROWS * length - tokens) * source.documents // source.tokens_total
        for document in sequence.served(end, min(epoch_end, end + wanted)).tolist():
            start = at.token if end == at.document else 0
            parts.append((document, start, source.length(document)))
            ordinals.append(-1 if start else end)
            tokens += parts[-1][2] - start
            end += 1
            if tokens >= WINDOW_ROWS * length:
                break
    cut = [(piece, ordinal) for part, ordinal in zip(parts, ordinals, strict=True) for piece in _cut(part, length)]
    pieces = [piece for piece, _ in cut]
    packed = sorted(best_fit([stop - start for _, start, stop in pieces], length), key=lambda row: row[0])
    return Window(at.document, end, pieces, [ordinal for _, ordinal in cut], [sorted(row) for row in packed])


def _cut(part: Part, length: int) -> Iterable[Part]:
    document, start, stop = part
    return ((document, at, min(at + length, stop)) for at in range(start, stop, length))


def closed(source: TokenSource, sequence: DocumentSequence, at: SourceCursor) -> tuple[DocumentSequence, SourceCursor]:
    """The sequence and the cursor once the window that is open at `at` is given up: its rows' length is free again."""
    if at.window is None:
        return sequence, at
    found = window(source, sequence, at, at.window.length)
    first = at.document + (at.token > 0)  # a document that was begun before the window stays where it is
    begun = found.begun(at.window.rows)
    served = {index for row in found.rows[: at.window.rows] for index in row}
    left = [
        part
        for index, part in enumerate(found.parts)
        if index not in served and (found.ordinals[index] == -1 or found.ordinals[index] in begun)
    ]
    after = replace(at, document=first + len(begun), token=0, window=None, left=tuple(_joined(left)))
    if begun != set(range(first, first + len(begun))):
        order = sorted(range(first, found.end), key=lambda ordinal: ordinal not in begun)  # stable
        documents = sequence.served(first, found.end)
        sequence = sequence.rearranged(first, [int(documents[ordinal - first]) for ordinal in order])
    return sequence, replace(after, moved=sequence.moved)


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring pieces of one document as one part."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1][0] == part[0] and found[-1][2] == part[1]:
            found[-1] = (part[0], found[-1][1], part[2])
        else:
            found.append(part)
    return found


class BestFitStream:
    """The rows of one source in served order, from a cursor on."""

    def __init__(self, source: TokenSource, sequence: DocumentSequence, at: SourceCursor) -> None:
        self._source = source
        self.sequence = sequence
        self._at = at
        self._open: Window | None = None
        self._taken: list[tuple[int, SourceCursor, Window, int]] = []  # of the last take: row, where, window, length

    def position(self, rows: int | None = None) -> SourceCursor:
        """The cursor after so many rows of the last `take` (None: all of them); its counts are those of the start."""
        if rows is None or not self._taken:
            return self._at
        first, at, found, length = next(taken for taken in reversed(self._taken) if taken[0] <= rows)
        return self._after(at, found, rows - first, length)

    def reshuffle(self, seed: int) -> None:
        """Order every document that was not begun by `seed`; one that was begun is finished in the next window."""
        self._close()
        begun = self._at.document + (self._at.token > 0)
        self.sequence = self.sequence.reshuffled(begun, seed)
        self._at = replace(self._at, reshuffles=self.sequence.reshuffles, moved=self.sequence.moved)

    def take(self, rows: int, length: int, masked: bool) -> Rows:
        """The next `rows` rows of `length` positions."""
        if self._at.window is not None and self._at.window.length != length:
            self._close()
        arrays = _Arrays(rows, length)
        self._taken = []
        done = 0
        while done < rows:
            found = self._open or window(self._source, self.sequence, self._at, length)
            self._taken.append((done, self._at, found, length))
            first = self._at.window.rows if self._at.window is not None else 0
            here = found.rows[first : first + rows - done]
            for number, row in enumerate(here, start=done):
                arrays.fill(number, self._source, [found.parts[index] for index in row], masked)
            done += len(here)
            self._at = self._after(self._at, found, len(here), length)
            self._open = found if self._at.window is not None else None
        return Rows(arrays.input_ids, arrays.labels, arrays.position_ids, arrays.documents)

    def _after(self, at: SourceCursor, found: Window, rows: int, length: int) -> SourceCursor:
        """`rows` rows further in the window that `at` lies in."""
        if rows == 0:
            return at
        rows += at.window.rows if at.window is not None else 0
        if rows == len(found.rows):
            return replace(at, document=found.end, token=0, window=None, left=(), moved=self.sequence.moved)
        return replace(at, window=OpenWindow(length, rows, len(found.begun(rows))))

    def _close(self) -> None:
        self.sequence, self._at = closed(self._source, self.sequence, self._at)
        self._open, self._taken = None, []


class _Arrays:
    """Rows that are being filled. Where nothing is put: padding."""

    def __init__(self, rows: int, length: int) -> None:
        self.input_ids = np.empty((rows, length), dtype=np.int64)
        self.labels = np.full((rows, length), NO_LABEL, dtype=np.int64)
        self.position_ids = np.empty((rows, length), dtype=np.int64)
        self.documents: list[np.ndarray] = []
        self._length = length
        self._count = np.arange(length)

    def fill(self, row: int, source: TokenSource, parts: Sequence[Part], masked: bool) -> None:
        """Put parts of documents side by side. The label of a document's last token is none where masked."""
        ids, labels, positions = self.input_ids[row], self.labels[row], self.position_ids[row]
        at = 0
        for document, start, stop in parts:
            tokens, size = source.tokens(document), stop - start
            ids[at : at + size] = tokens[start:stop]
            following = tokens[start + 1 : stop + 1]
            labels[at : at + len(following)] = following
            positions[at : at + size] = self._count[:size]
            at += size
        ids[at:] = PAD
        positions[at:] = self._count[: self._length - at]
        if not masked:
            labels[: at - 1] = ids[1:at]
            positions[:] = self._count
        self.documents.append(np.array([document for document, _, _ in parts], dtype=np.int64))
