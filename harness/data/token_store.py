"""A source as tokens on disk, memory-mapped: written once per (source, tokenizer), read by every run of every study.

tokens.bin      token ids, little-endian uint16 (vocabularies up to 65,536) or uint32; every document ends with EOS
offsets.npy     int64, documents + 1: document i is tokens[offsets[i]:offsets[i + 1]]
held_out.jsonl  {"text"} a line: the documents kept for evaluation, as text, in the source's order
meta.json       counts, dtype, identities; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from harness.data.cache import build_once, cache_root
from harness.data.documents import Documents, Split, SplitSummary, split
from harness.data.tokenizer import Tokenizer
from harness.plan.canonical import digest
from harness.store.atomic import read_json, sha256_file, write_json
from harness.store.markers import check_schema
from harness.study.errors import UserError

STORE_VERSION = 1
_BATCH = 256  # documents tokenized at once
_HELD_OUT = "held_out.jsonl"


class TokenSource:
    """The training documents of one source under one tokenizer, as arrays.

    identity: the source's identity. documents: how many. tokens_total: with EOS. path: the folder, None in memory.
    """

    def __init__(self, identity: str, tokens: np.ndarray, offsets: np.ndarray, path: Path | None = None) -> None:
        """tokens: [n] unsigned integers. offsets: [documents + 1] int64, ascending from 0 to n, no document empty."""
        self.identity = identity
        self.ids = tokens
        self.offsets = offsets
        self.lengths = np.diff(offsets)
        self.documents = len(offsets) - 1
        self.tokens_total = int(offsets[-1])
        self.path = path
        if self.documents < 1 or self.lengths.min() < 1 or self.tokens_total != len(tokens):
            raise ValueError(f"source {identity}: offsets do not describe {len(tokens)} tokens")

    @classmethod
    def open(cls, path: Path | str) -> TokenSource:
        """Map a token store. UserError when it is missing or damaged."""
        path = Path(path)
        if not is_complete(path):
            raise UserError(f"the token store {path} is missing or damaged; `ablate run` builds it again")
        meta = read_json(path / "meta.json")
        tokens = np.memmap(path / "tokens.bin", dtype=meta["dtype"], mode="r")
        return cls(meta["source"], np.asarray(tokens), np.load(path / "offsets.npy"), path)

    def length(self, document: int) -> int:
        """Tokens of a document, EOS included."""
        return int(self.lengths[document])

    def tokens(self, document: int) -> np.ndarray:
        """[length] token ids of a document, EOS last."""
        return self.ids[self.offsets[document] : self.offsets[document + 1]]


def is_complete(path: Path) -> bool:
    """Whether a token store has every file at the size that its meta.json says. UserError when a newer version made it.

    Checksums are not asked: stores are large. Whoever has a cache of them checks `recorded_files`.
    """
    try:
        meta = read_json(path / "meta.json")
        check_schema(path / "meta.json", int(meta["version"]), STORE_VERSION)
        return all((path / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def recorded_files(path: Path) -> dict[str, dict[str, Any]]:
    """Checksum and size of every file of a complete token store, as its meta.json has them."""
    meta = read_json(path / "meta.json")
    return {name: {"sha256": sha, "bytes": meta["sizes"][name]} for name, sha in meta.get("sha256", {}).items()}


def build_token_store(
    documents: Documents, summary: Split, tokenizer: Tokenizer, progress: Callable[[int], None]
) -> Path:
    """The token store of a source, built unless the shared store has it. Returns its folder.

    summary: of the same documents. progress: called with the documents done so far. UserError when the documents are
    no longer those of the summary.
    """
    key = {
        "version": STORE_VERSION,
        "source": summary.identity,
        "held_out": summary.held_out.content,
        "tokenizer": tokenizer.identity,
    }
    entry = cache_root() / "tokens" / digest(key)
    writer = lambda folder: _Writer(folder, tokenizer).write(documents(), summary, progress)  # noqa: E731
    return build_once(entry, is_complete, writer, needed=summary.train.bytes + summary.held_out.bytes)


@dataclass(slots=True)
class _Writer:
    folder: Path
    tokenizer: Tokenizer

    @property
    def dtype(self) -> str:
        return "<u2" if self.tokenizer.vocab_size <= 2**16 else "<u4"

    def write(self, documents: Iterator[str], summary: Split, progress: Callable[[int], None]) -> None:
        seen = SplitSummary(summary.share)
        with (self.folder / "tokens.bin").open("wb") as tokens, (self.folder / _HELD_OUT).open("wb") as kept:
            lengths, held_out_tokens = self._documents(documents, seen, tokens, kept, progress)
        if seen.result() != summary:
            raise UserError("the documents of a source changed while they were read; run again")
        np.save(self.folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        names = ("tokens.bin", "offsets.npy", _HELD_OUT)
        meta: dict[str, Any] = {
            "version": STORE_VERSION,
            "source": summary.identity,
            "tokenizer": self.tokenizer.identity,
            "dtype": self.dtype,
            "eos": self.tokenizer.eos,
            "train": {
                "documents": summary.train.documents,
                "tokens": int(sum(lengths)),
                "bytes": summary.train.bytes,
            },
            "held_out": {
                "documents": summary.held_out.documents,
                "tokens": held_out_tokens,
                "bytes": summary.held_out.bytes,
            },
            "sizes": {name: (self.folder / name).stat().st_size for name in names},
            "sha256": {name: sha256_file(self.folder / name) for name in names},
        }
        write_json(self.folder / "meta.json", meta)

    def _documents(
        self,
        documents: Iterator[str],
        seen: SplitSummary,
        tokens: BinaryIO,
        kept: BinaryIO,
        progress: Callable[[int], None],
    ) -> tuple[list[int], int]:
        """Write every document to its side. Returns the training documents' lengths and the tokens held out."""
        lengths: list[int] = []
        held_out_tokens = done = 0
        parted = split(documents, seen.share)
        while batch := list(islice(parted, _BATCH)):
            encoded = self.tokenizer.encode([text for text, _, _ in batch])
            for (text, text_hash, held_out), ids in zip(batch, encoded, strict=True):
                seen.add(text, text_hash, held_out)
                if held_out:
                    held_out_tokens += len(ids)
                    kept.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
                else:
                    lengths.append(len(ids))
                    tokens.write(ids.astype(self.dtype).tobytes())
            done += len(batch)
            progress(done)
        return lengths, held_out_tokens
