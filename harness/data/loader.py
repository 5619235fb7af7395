"""Batches of a path: a pure function of (pieces, sources, cursor).

A path is cut into pieces in which mixture, context and data seed hold (`segment.json`). The loader walks them from the
cursor on; which process walks, where it was cut and how often it was resumed changes no batch. It works out several
batches at once and hands them out one by one; the cursor always speaks of those handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.data.best_fit import BestFitStream
from harness.data.cursor import Cursor, SourceCursor
from harness.data.packing import NO_LABEL, Stream
from harness.data.pieces import BEST_FIT, DataPiece
from harness.data.sequence import DocumentSequence
from harness.data.token_store import TokenSource
from harness.plan.blend import Blend

_BLOCK = 1 << 16  # tokens worked out at once


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, the tokens [start, start + rows x length) of the path.

    input_ids, labels, position_ids: [rows, length] int64. labels are shifted already (labels[i] is the token after
    input_ids[i]; -100: none). source: [rows] int64, index into `Loader.source_names`.
    """

    start: int
    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    source: np.ndarray
    row_documents: Sequence[np.ndarray]

    @property
    def documents(self) -> list[list[tuple[int, int]]]:
        """For each row the (source, document index) pairs in it, as served; source as in `source`."""
        return [
            [(int(source), int(document)) for document in documents]
            for source, documents in zip(self.source, self.row_documents, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Served:
    """What a path drew from one source. tokens: positions, padding included. epochs: documents begun / in the pool."""

    tokens: int
    labels: int
    documents: int
    epochs: float


@dataclass(slots=True)
class _Block:
    """Batches worked out ahead, all of one piece; `given` of `batches` were handed out.

    input_ids, labels, position_ids: [batches x rows, length]. source: [batches x rows], indices of `source_names`.
    rows_by, labels_by: [batches + 1, sources of the piece], rows and labels of each source in the batches before.
    """

    piece: DataPiece
    blend_counts: list[int]
    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    source: np.ndarray
    documents: list[np.ndarray]
    rows_by: np.ndarray
    labels_by: np.ndarray
    batches: int
    given: int = 0

    def next(self, start: int) -> Batch:
        rows = slice(self.given * self.piece.rows, (self.given + 1) * self.piece.rows)
        self.given += 1
        arrays = self.input_ids[rows], self.labels[rows], self.position_ids[rows], self.source[rows]
        return Batch(start, *arrays, self.documents[rows])


class Loader:
    """Batches from path position `tokens` on (where the next one begins). `source_names` is sorted."""

    def __init__(
        self,
        pieces: Sequence[Mapping[str, Any]],
        sources: Mapping[str, TokenSource],
        cursor: Cursor | None = None,
        tokens: int = 0,
    ) -> None:
        """pieces: the path from token 0, contiguous. cursor: as it was at `tokens`; None only at token 0.

        ValueError when the pieces do not fit together, or a source is not the one that they name.
        """
        if cursor is None and tokens:
            raise ValueError(f"a path is entered at token {tokens} only with the cursor that it had there")
        self._pieces = [DataPiece.read(piece) for piece in pieces]
        if any(a.end != b.start for a, b in zip(self._pieces, self._pieces[1:], strict=False)):
            raise ValueError("the pieces of a path are contiguous")
        self.source_names = tuple(sorted({name for piece in self._pieces for name in piece.names}))
        self.sources = sources
        self.tokens = tokens
        self._check_sources()
        self._cursor = cursor or Cursor()  # where the running block began
        self._streams: dict[str, Stream | BestFitStream] = {}
        self._block: _Block | None = None

    def next(self) -> Batch:
        """The batch that begins at `tokens`; moves there. StopIteration at the path's end."""
        block = self._block
        if block is None or block.given == block.batches:
            block = self._work_ahead()
        batch = block.next(self.tokens)
        self.tokens += block.piece.batch_tokens
        return batch

    def cursor(self) -> Cursor:
        """Where the path is now: with it, `Loader(pieces, sources, cursor, tokens)` goes on in any process."""
        block = self._block
        if block is None or block.given == 0:
            return self._cursor
        piece = block.piece
        rows, labels = block.rows_by[block.given].tolist(), block.labels_by[block.given].tolist()
        sources = dict(self._cursor.sources)
        for number, name in enumerate(piece.names):
            if rows[number]:
                before = sources.get(name)
                tokens_before, labels_before = (before.tokens, before.labels) if before else (0, 0)
                tokens_now = tokens_before + rows[number] * piece.length
                at = _position(self._streams[name], rows[number], piece.length)
                sources[name] = replace(at, tokens=tokens_now, labels=labels_before + labels[number])
        if piece.blend_from is None:
            return Cursor(sources, self._cursor.blend_from, self._cursor.blend_counts)
        counts = [start + n for start, n in zip(block.blend_counts, rows, strict=True)]
        return Cursor(sources, piece.blend_from, dict(zip(piece.names, counts, strict=True)))

    def _work_ahead(self) -> _Block:
        """The next batches of the piece that holds `tokens`, up to its end."""
        piece = self._piece_at(self.tokens)
        self._cursor, self._block = self.cursor(), None
        batches = min((piece.end - self.tokens) // piece.batch_tokens, max(1, _BLOCK // piece.batch_tokens))
        counts = self._blend_counts(piece)
        if piece.blend_from is None:
            chosen = np.zeros(batches * piece.rows, dtype=np.int64)
        else:
            chosen = np.array(Blend(piece.shares, counts).take(batches * piece.rows))
        self._block = self._filled(piece, batches, counts, chosen)
        return self._block

    def _filled(self, piece: DataPiece, batches: int, counts: list[int], chosen: np.ndarray) -> _Block:
        """chosen: for each row the number of its source in the piece."""
        ids, labels, positions = (np.empty((len(chosen), piece.length), dtype=np.int64) for _ in range(3))
        source = np.empty(len(chosen), dtype=np.int64)
        documents: list[np.ndarray] = [source] * len(chosen)
        rows_by, labels_by = (np.zeros((batches + 1, len(piece.names)), dtype=np.int64) for _ in range(2))
        for number, name in enumerate(piece.names):
            stream = self._stream(name, piece, number)
            mine = chosen == number
            rows = np.flatnonzero(mine)
            drawn = stream.take(len(rows), piece.length, piece.masked)
            ids[rows], labels[rows], positions[rows] = drawn.input_ids, drawn.labels, drawn.position_ids
            source[rows] = self.source_names.index(name)
            for row, held in zip(rows.tolist(), drawn.documents, strict=True):
                documents[row] = held
            labelled = np.zeros(len(chosen), dtype=np.int64)
            labelled[rows] = np.count_nonzero(drawn.labels != NO_LABEL, axis=1)
            rows_by[1:, number] = np.cumsum(mine.reshape(batches, -1).sum(axis=1))
            labels_by[1:, number] = np.cumsum(labelled.reshape(batches, -1).sum(axis=1))
        return _Block(piece, counts, ids, labels, positions, source, documents, rows_by, labels_by, batches)

    def _piece_at(self, tokens: int) -> DataPiece:
        for piece in self._pieces:
            if piece.start <= tokens < piece.end:
                if (tokens - piece.start) % piece.batch_tokens:
                    raise ValueError(f"token {tokens} is not a batch boundary of [{piece.start}, {piece.end})")
                return piece
        raise StopIteration(f"the path ends before token {tokens}")

    def _blend_counts(self, piece: DataPiece) -> list[int]:
        """Rows of each of the piece's sources since its counters started."""
        cursor = self._cursor
        if piece.blend_from is None or piece.blend_from == self.tokens:
            return [0] * len(piece.names)
        if piece.blend_from != cursor.blend_from or set(piece.names) != set(cursor.blend_counts):
            raise ValueError(
                f"the blend of [{piece.start}, {piece.end}) counts from token {piece.blend_from}, "
                f"the cursor's from {cursor.blend_from}"
            )
        return [cursor.blend_counts[name] for name in piece.names]

    def _stream(self, name: str, piece: DataPiece, number: int) -> Stream | BestFitStream:
        """A source's stream where the cursor has it; its documents from here on are ordered by the piece's seed."""
        kind = BestFitStream if piece.packing == BEST_FIT else Stream
        stream = self._streams.get(name)
        if not isinstance(stream, kind):
            at = self._cursor.sources.get(name) or SourceCursor(0, 0, ((0, piece.data_seed),), 0, 0)
            source = self.sources[name]
            sequence = DocumentSequence(piece.identities[number], source.documents, at.reshuffles, at.moved)
            if kind is BestFitStream:
                stream = BestFitStream(source, sequence, at)
            elif at.window is not None or at.left:
                raise ValueError(f"source `{name}` is in a window of best-fit packing; it cannot go on concatenated")
            else:
                stream = Stream(source, sequence, at.document, at.token)
            self._streams[name] = stream
        if stream.sequence.reshuffles[-1][1] != piece.data_seed:
            stream.reshuffle(piece.data_seed)
        return stream

    def _check_sources(self) -> None:
        for piece in self._pieces:
            for name, identity in zip(piece.names, piece.identities, strict=True):
                found = self.sources[name].identity if name in self.sources else None
                if found != identity:
                    raise ValueError(f"source `{name}`: the path names {identity}, the token store holds {found}")


def served(loader: Loader) -> dict[str, Served]:
    """What the path drew so far, per source of it, in the order of their names."""
    cursor = loader.cursor()
    return {name: _served(cursor.sources.get(name), loader.sources[name]) for name in loader.source_names}


def _served(at: SourceCursor | None, source: TokenSource) -> Served:
    if at is None:
        return Served(0, 0, 0, 0.0)
    return Served(at.tokens, at.labels, at.begun, at.begun / source.documents)


def _position(stream: Stream | BestFitStream, rows: int, length: int) -> SourceCursor:
    """Where a stream is after `rows` rows of what was worked out last; with its counts still to come."""
    if isinstance(stream, BestFitStream):
        return stream.position(rows)
    document, token = stream.position(rows * length)
    return SourceCursor(document, token, stream.sequence.reshuffles, 0, 0, moved=stream.sequence.moved)
