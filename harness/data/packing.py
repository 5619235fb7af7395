"""From a source's endless document sequence to rows of positions: concatenation.

Documents follow each other without gaps; a row of length L consumes exactly L tokens and the next row goes on where it
ended, in the middle of a document if need be. The label of a position is the token that follows it in the stream; that
of a row's last position is peeked at, not consumed.

masked: a document sees and predicts only itself. Position ids restart at each document (and at the row's start, where
nothing before can be seen), and the last token of a document has no label. joined: the row is one text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.data.sequence import DocumentSequence
from harness.data.token_store import TokenSource

NO_LABEL = -100
_WINDOW = 1 << 16  # tokens gathered at once


@dataclass(frozen=True, slots=True)
class Rows:
    """k rows of L positions from one source.

    input_ids, labels, position_ids: [k, L] int64. documents: for each row the documents in it, as served.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    documents: list[np.ndarray]


class Stream:
    """The tokens of one source in served order, from (document ordinal, token inside it) on."""

    def __init__(self, source: TokenSource, sequence: DocumentSequence, document: int, token: int) -> None:
        self._source = source
        self.sequence = sequence
        self._next = self._took_from = 0  # indices into the gathered tokens: the next one, the last take's first
        self._fill(document, token, 0)

    def position(self, taken: int | None = None) -> tuple[int, int]:
        """(document ordinal, token inside it) of the next token; a document that is used up counts as left.

        taken: where it was after so many tokens of the last `take` (None: all of them).
        """
        at = self._next if taken is None else self._took_from + taken
        index = int(np.searchsorted(self._starts, at, side="right")) - 1
        inside = at - int(self._starts[index]) + (self._skipped if index == 0 else 0)
        return self._ordinal + index, inside

    def reshuffle(self, seed: int) -> None:
        """Order every document that was not begun by `seed`; one that was begun is finished first."""
        document, token = self.position()
        self.sequence = self.sequence.reshuffled(document + (token > 0), seed)
        self._fill(document, token, 0)

    def take(self, rows: int, length: int, masked: bool) -> Rows:
        """Consume rows x length tokens."""
        count = rows * length
        if self._next + count >= len(self._tokens):
            self._fill(*self.position(), count + 1)
        here, after = slice(self._next, self._next + count), slice(self._next + 1, self._next + count + 1)
        input_ids = self._tokens[here].reshape(rows, length)
        labels = self._tokens[after].reshape(rows, length)
        if masked:
            # A token that stands first in its document is never a label.
            labels = np.where(self._inside[after].reshape(rows, length) == 0, NO_LABEL, labels)
            position_ids = np.minimum(self._inside[here].reshape(rows, length), np.arange(length))
        else:
            position_ids = np.broadcast_to(np.arange(length), (rows, length))
        documents = self._documents_of(rows, length)
        self._took_from = self._next
        self._next += count
        return Rows(input_ids, labels, position_ids, documents)

    def _documents_of(self, rows: int, length: int) -> list[np.ndarray]:
        first = np.arange(self._next, self._next + rows * length, length)
        begin = np.searchsorted(self._starts, first, side="right") - 1
        end = np.searchsorted(self._starts, first + length - 1, side="right")
        return [self._documents[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

    def _fill(self, ordinal: int, token: int, at_least: int) -> None:
        """Gather the next tokens, at least `at_least` of them, from document `ordinal` at `token` on."""
        wanted = max(at_least, min(_WINDOW, 4 * self._source.tokens_total))
        documents, lengths = self._documents_for(ordinal, token + wanted)
        skipped = np.zeros(len(documents), dtype=np.int64)
        skipped[0] = token
        lengths = lengths - skipped
        stops = np.cumsum(lengths)
        lengths[-1] -= max(0, int(stops[-1]) - wanted)  # the last document is not needed to its end
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        total = int(lengths.sum())
        self._inside = np.arange(total) - np.repeat(starts - skipped, lengths)
        gathered = np.repeat(self._source.offsets[documents], lengths) + self._inside
        self._tokens = self._source.ids[gathered].astype(np.int64)
        self._starts, self._documents, self._ordinal, self._skipped = starts, documents, ordinal, token
        self._next = self._took_from = 0

    def _documents_for(self, ordinal: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The fewest documents from `ordinal` on that hold `tokens` tokens, and their lengths."""
        count = 2 + tokens * self._source.documents // self._source.tokens_total
        while True:
            documents = self.sequence.served(ordinal, ordinal + count)
            lengths = self._source.lengths[documents]
            stops = np.cumsum(lengths)
            if stops[-1] >= tokens:
                enough = int(np.searchsorted(stops, tokens)) + 1
                return documents[:enough], lengths[:enough]
            count *= 2
