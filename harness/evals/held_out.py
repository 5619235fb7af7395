"""Held-out bits per byte: the loss on documents that were kept out of training, per UTF-8 byte of their raw text.

A document is encoded on its own with the model's tokenizer, without special tokens, and cut into windows of a fixed
number of positions that do not overlap; no window reaches into another document. Every token is scored exactly once:
the first token of a document is predicted from one prefix token (the tokenizer's BOS, or EOS when it has no BOS; this
is lm-eval's rule for an empty context), the first token of a later window from the last token of the window before it,
which is all the left context that it gets. The end-of-document token is not scored. So

    BPB = sum of nats over all tokens / (ln 2 * sum of UTF-8 bytes over all documents).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.evals.item_metrics import Metric, ratio_metric
from harness.study.errors import UserError

FIRST_BUCKET = 32  # positions; buckets then double, so that each has as many positions as all before it


@dataclass(frozen=True)
class Document:
    """doc_id: its line in the held-out file. doc_hash: SHA-256 of its UTF-8 text. size: UTF-8 bytes."""

    doc_id: int
    doc_hash: str
    size: int
    text: str


@dataclass(frozen=True)
class DocumentLoss:
    """The loss of one document. nats: float64, one per token in order."""

    document: Document
    nats: np.ndarray

    @property
    def nll(self) -> float:
        return float(self.nats.sum())


def read_documents(path: Path, most: int) -> list[Document]:
    """At most `most` documents of a held-out file, in file order. Raises UserError when there are none.

    Which ones is decided by the hash of their text, not by their place, so a file sorted by topic is sampled evenly and
    a document added elsewhere displaces at most one.
    """
    documents = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"The held-out documents {path} cannot be read ({error.strerror}); resolve the sources again."
        ) from None
    for number, line in enumerate(lines):
        text = json.loads(line)["text"]
        raw = text.encode("utf-8")
        if raw:
            documents.append(Document(number, hashlib.sha256(raw).hexdigest(), len(raw), text))
    if not documents:
        raise UserError(f"There is no held-out text in {path}: raise the source's `held_out` share.")
    chosen = sorted(documents, key=lambda document: (document.doc_hash, document.doc_id))[:most]
    return sorted(chosen, key=lambda document: document.doc_id)


def encode(tokenizer: Any, documents: Sequence[Document]) -> list[list[int]]:
    """Token ids of each document alone, without special tokens."""
    return tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def score(
    model: torch.nn.Module,
    tokens: Sequence[Sequence[int]],
    prefix: int,
    window: int,
    batch_size: int,
    device: torch.device,
) -> list[np.ndarray]:
    """Nats of every token of every sequence, float64 [tokens], by the rules of this module.

    prefix: the token that stands before each sequence. Windows are batched longest first and padded on the right; under
    a causal mask padding changes nothing to its left.
    """
    losses = [np.zeros(len(sequence), dtype=np.float64) for sequence in tokens]
    windows = [
        (row, start, min(window, len(sequence) - start))
        for row, sequence in enumerate(tokens)
        for start in range(0, len(sequence), window)
    ]
    windows.sort(key=lambda piece: -piece[2])
    for batch in _batches(windows, batch_size):
        rows = [
            [prefix, *tokens[row][:length]] if start == 0 else tokens[row][start - 1 : start + length]
            for row, start, length in batch
        ]
        longest = batch[0][2]
        ids = torch.tensor([list(row) + [prefix] * (longest + 1 - len(row)) for row in rows], device=device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        for index, (row, start, length) in enumerate(batch):
            nats = torch.nn.functional.cross_entropy(
                logits[index, :length].float(), ids[index, 1 : length + 1], reduction="none"
            )
            losses[row][start : start + length] = nats.double().cpu().numpy()
    return losses


def _batches(pieces: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(pieces), size):
        yield pieces[start : start + size]


def bucket_edges(window: int) -> list[int]:
    """Edges of the position buckets: 0, 32, 64, 128, … and the window."""
    edges = [0]
    edge = FIRST_BUCKET
    while edge < window:
        edges.append(edge)
        edge *= 2
    return [*edges, window]


def by_position(nats: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of a document per bucket of the position in the window, each [buckets]."""
    edges = bucket_edges(window)
    bucket = np.searchsorted(edges, np.arange(len(nats)) % window, side="right") - 1
    buckets = len(edges) - 1
    return np.bincount(bucket, weights=nats, minlength=buckets), np.bincount(bucket, minlength=buckets)


def metrics(losses: Sequence[DocumentLoss], window: int, positions: bool) -> dict[str, Metric]:
    """`bits_per_byte`, and with `positions` also `nats_per_token[a,b)` per bucket. Items are documents."""
    sizes = [loss.document.size for loss in losses]
    found = {"bits_per_byte": ratio_metric([loss.nll for loss in losses], sizes, False, 1 / math.log(2))}
    if positions:
        edges = bucket_edges(window)
        sums = [by_position(loss.nats, window) for loss in losses]
        for index, (low, high) in enumerate(pairwise(edges)):
            present = [(nats[index], count[index]) for nats, count in sums if count[index]]
            found[f"nats_per_token[{low},{high})"] = ratio_metric(
                [nats for nats, _ in present], [count for _, count in present], False
            )
    return found


def rows(losses: Sequence[DocumentLoss], window: int, positions: bool) -> list[dict[str, Any]]:
    """One row per document: doc_id, doc_hash, nll (nats), bytes, tokens, and per bucket its nats and tokens."""
    edges = bucket_edges(window)
    table = []
    for loss in losses:
        row = {
            "doc_id": loss.document.doc_id,
            "doc_hash": loss.document.doc_hash,
            "nll": loss.nll,
            "bytes": loss.document.size,
            "tokens": len(loss.nats),
        }
        if positions:
            nats, counts = by_position(loss.nats, window)
            for index, (low, high) in enumerate(pairwise(edges)):
                row[f"nll[{low},{high})"] = float(nats[index])
                row[f"tokens[{low},{high})"] = int(counts[index])
        table.append(row)
    return table
