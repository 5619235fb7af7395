"""What a document is here: a text, with a content hash that decides on which side of the held-out split it falls.

A document is a plain `str`; sources are iterables of them that yield the same texts in the same order each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from harness.plan.canonical import digest

Documents = Callable[[], Iterator[str]]
"""Begins the source anew: every call yields the same documents in the same order."""

IDENTITY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One side of a split. `bytes`: UTF-8 bytes of the texts. `content`: SHA-256 over the documents' hashes."""

    documents: int
    bytes: int
    content: str


@dataclass(frozen=True, slots=True)
class Split:
    """A source, read once: what is trained on and what is kept for evaluation."""

    train: Part
    held_out: Part
    share: Fraction

    @property
    def identity(self) -> str:
        """Name of what training sees: the training documents in their order, and the rule that chose them.

        The tokenizer is no part of it, and neither are paths, file formats or the source's name.
        """
        return digest({"version": IDENTITY_VERSION, "train": self.train.content, "held_out": _plain(self.share)})


def document_hash(text: str) -> bytes:
    """SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).digest()


def is_held_out(text_hash: bytes, share: Fraction) -> bool:
    """Whether a document is kept for evaluation: the first 64 bits of its hash, as a fraction of 1, below `share`.

    It depends on the document alone, so adding documents moves none, and exact duplicates fall on one side.
    """
    return int.from_bytes(text_hash[:8], "big") < share * 2**64


def split(documents: Iterable[str], share: Fraction) -> Iterator[tuple[str, bytes, bool]]:
    """(text, hash, held out) of every document that has any text; white space alone is no document."""
    for text in documents:
        if text.strip():
            text_hash = document_hash(text)
            yield text, text_hash, is_held_out(text_hash, share)


def training_documents(documents: Iterable[str], share: Fraction) -> Iterator[str]:
    """The texts that may be trained on."""
    return (text for text, _, held_out in split(documents, share) if not held_out)


class SplitSummary:
    """Adds documents up to a `Split`."""

    def __init__(self, share: Fraction) -> None:
        self.share = share
        self._hashes = (hashlib.sha256(), hashlib.sha256())
        self._documents = [0, 0]
        self._bytes = [0, 0]

    def add(self, text: str, text_hash: bytes, held_out: bool) -> None:
        self._hashes[held_out].update(text_hash)
        self._documents[held_out] += 1
        self._bytes[held_out] += len(text.encode())

    def result(self) -> Split:
        train, held_out = (
            Part(self._documents[side], self._bytes[side], self._hashes[side].hexdigest()) for side in (0, 1)
        )
        return Split(train, held_out, self.share)


def summarise(documents: Iterable[str], share: Fraction) -> Split:
    """Read a source once, to its `Split`."""
    summary = SplitSummary(share)
    for text, text_hash, held_out in split(documents, share):
        summary.add(text, text_hash, held_out)
    return summary.result()


def _plain(share: Fraction) -> str:
    return f"{share.numerator}/{share.denominator}"
