"""Small sources and paths for the tests of the data room, and a loader that is slow and obvious."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from harness.data.sequence import DocumentSequence
from harness.data.token_store import TokenSource
from harness.plan.blend import Blend


def toy_source(name: str, lengths: Sequence[int]) -> TokenSource:
    """Every token names its document and its place: document x 1000 + place, so a test can read both back."""
    ids = np.concatenate([1000 * document + np.arange(length) for document, length in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenSource(f"identity of {name}", ids.astype("<u4"), offsets)


def piece(
    start: int,
    end: int,
    mixture: Mapping[str, str],
    *,
    stage: str = "only",
    seed: int = 1,
    batch: int = 16,
    length: int = 8,
    documents: str = "masked",
    blend_from: int | None = None,
    packing: str = "concat",
) -> dict[str, Any]:
    science: dict[str, Any] = {
        "mixture": dict(mixture),
        "sources": {name: f"identity of {name}" for name in mixture},
        "data_seed": seed,
        "batch_tokens": batch,
        "context": {
            "length": length,
            "documents": documents,
            "packing": packing,
            "rope": {"type": "base"},
        },
    }
    if len(mixture) > 1:
        science["blend_from"] = start if blend_from is None else blend_from
    return {"start": start, "end": end, "stage": stage, "science": science}


class PlainStream:
    """One source token by token. `tokens`: (document, place in it) pairs, endless."""

    def __init__(self, name: str, source: TokenSource, seed: int) -> None:
        self.source = source
        self.sequence = DocumentSequence(f"identity of {name}", source.documents, [(0, seed)])
        self.ordinal = self.place = 0

    def at(self, ahead: int) -> tuple[int, int]:
        ordinal, place = self.ordinal, self.place + ahead
        while place >= (length := self.source.length(self._document(ordinal))):
            place -= length
            ordinal += 1
        return self._document(ordinal), place

    def advance(self, count: int) -> None:
        self.place += count
        while self.place >= (length := self.source.length(self._document(self.ordinal))):
            self.place -= length
            self.ordinal += 1

    def reseed(self, seed: int) -> None:
        begun = self.ordinal + (self.place > 0)
        if self.sequence.reshuffles[-1][1] != seed:
            self.sequence = self.sequence.reshuffled(begun, seed)

    def _document(self, ordinal: int) -> int:
        return int(self.sequence.served(ordinal, ordinal + 1)[0])


def plain_batches(pieces: Sequence[Mapping[str, Any]], sources: Mapping[str, TokenSource]) -> Iterator[SimpleNamespace]:
    """What `Loader` should give, one token at a time and with nothing kept but positions."""
    streams: dict[str, PlainStream] = {}
    blend: Blend | None = None
    blend_from = None
    for each in pieces:
        science = each["science"]
        names = sorted(science["mixture"])
        if len(names) > 1 and science["blend_from"] != blend_from:
            blend_from = science["blend_from"]
            blend = Blend([Fraction(science["mixture"][name]) for name in names])
        for name in names:
            if name not in streams:
                streams[name] = PlainStream(name, sources[name], science["data_seed"])
            streams[name].reseed(science["data_seed"])
        length, masked = science["context"]["length"], science["context"]["documents"] == "masked"
        for _ in range((each["end"] - each["start"]) // science["batch_tokens"]):
            rows = []
            for _ in range(science["batch_tokens"] // length):
                name = names[blend.next()] if blend and len(names) > 1 else names[0]
                rows.append(_row(name, streams[name], length, masked))
            yield SimpleNamespace(rows=rows)


def _row(name: str, stream: PlainStream, length: int, masked: bool) -> dict[str, Any]:
    tokens = [stream.at(ahead) for ahead in range(length + 1)]
    ids = [document * 1000 + place for document, place in tokens]
    positions: list[int] = []
    for here, (_, place) in enumerate(tokens[:-1]):
        restart = here == 0 or (masked and place == 0)
        positions.append(0 if restart else positions[-1] + 1)
    labels = [-100 if masked and place == 0 else token for token, (_, place) in zip(ids[1:], tokens[1:], strict=True)]
    documents: list[int] = []
    for here, (document, place) in enumerate(tokens[:-1]):
        if here == 0 or place == 0:
            documents.append(document)
    stream.advance(length)
    return {
        "source": name,
        "ids": ids[:-1],
        "labels": labels,
        "positions": positions,
        "documents": documents,
    }
