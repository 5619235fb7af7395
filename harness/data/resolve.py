"""From declared sources to manifests and token stores, before anything is planned or trained."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.documents import Documents, Split, summarise
from harness.data.sources import Source, declared_sources
from harness.data.token_store import TokenSource, build_token_store, is_complete
from harness.data.tokenizer import Progress, Tokenizer, open_tokenizer, silent
from harness.store.atomic import read_json, sha256_file
from harness.store.layout import Folder
from harness.store.manifests import read_source, write_source
from harness.study.errors import UserError

_BATCH = 256  # documents tokenized at once
TELL_SECONDS = 5.0  # between two words of how far tokenizing is
STAMP = ("path", "size", "mtime_ns", "ctime_ns")  # of `file_stamp`


def resolve_sources(
    study: Any, base_manifest: Mapping[str, Any], folder: Folder, progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """Resolve every source of the study: tokenize what is new, write manifests/sources/<name>.json.

    A manifest that is there is kept while the declaration, the tokenizer and the files' sizes and times are what they
    were and its token store is whole: then nothing is read. progress: called with lines for a person. Returns the
    manifests by name. UserError for files that are missing or unreadable, for a source without training documents, and
    for two that read the same documents and hold out different shares.
    """
    tokenizer: Tokenizer | None = None
    manifests: dict[str, dict[str, Any]] = {}
    sources = declared_sources(study)
    _check_one_split(list(sources.values()))
    for name, source in sources.items():
        known = read_source(folder, name)
        if known is not None and _still_holds(known, source, base_manifest["tokenizer"]["identity"]):
            manifests[name] = known
            continue
        if tokenizer is None:
            tokenizer = open_tokenizer(Path(base_manifest["tokenizer"]["path"]))
        manifest = resolve_source(source, tokenizer, progress)
        write_source(folder, name, manifest)
        manifests[name] = read_source(folder, name) or manifest
    return manifests


def _check_one_split(sources: Sequence[Source]) -> None:
    """Raise UserError where a document would be held out of one source and trained on through another: both read it,
    and hold out different shares. With equal shares its hash decides alike in both."""
    for one, other in itertools.combinations(sources, 2):
        if one.held_out != other.held_out and one.origins() & other.origins():
            more, less = sorted((one, other), key=lambda source: -source.held_out)
            raise UserError(
                f"sources `{one.name}` and `{other.name}` read the same documents, and `held_out` is "
                f"{float(more.held_out):g} for `{more.name}` and {float(less.held_out):g} for `{less.name}`: documents "
                f"on which bpb.{more.name} is measured would be trained on through `{less.name}`. Expected one share."
            )


def resolve_source(source: Source, tokenizer: Tokenizer, progress: Progress = silent) -> dict[str, Any]:
    """Read and tokenize one source; the content of its manifest, less the schema number."""
    stamp = source.stamp()
    documents = _long_enough(source, tokenizer)
    summary = summarise(documents(), source.held_out)
    _check_not_empty(source, summary)
    total = summary.train.documents + summary.held_out.documents
    store = build_token_store(
        documents,
        summary,
        tokenizer,
        _now_and_then(lambda done: progress(f"tokenizing {source.name}: {done:,} of {total:,} documents"), total),
    )
    meta = read_json(store / "meta.json")
    return {
        "name": source.name,
        "identity": summary.identity,
        "tokens": str(store),
        "tokenizer": tokenizer.identity,
        "train": {**meta["train"], "beyond": _beyond(store)},
        "held_out": {**meta["held_out"], "identity": summary.held_out.content},
        "declared": stamp["declared"],
        "pool": source.pool,
        "generator": stamp.get("generator"),
        "files": [{**file, "sha256": sha256_file(Path(file["path"]))} for file in stamp.get("files", [])],
    }


def _now_and_then(tell: Callable[[int], None], total: int) -> Callable[[int], None]:
    """`tell`, but only every `TELL_SECONDS` and at the end."""
    told = time.monotonic()

    def maybe(done: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            tell(done)

    return maybe


def _beyond(store: Path) -> dict[str, int]:
    """Length → training tokens that lie at least that far from their document's start, for powers of two."""
    lengths = TokenSource.open(store).lengths
    longest = int(lengths.max()) if len(lengths) else 0
    return {
        str(2**power): int(np.maximum(lengths - 2**power, 0).sum()) for power in range(4, max(4, longest.bit_length()))
    }


def _long_enough(source: Source, tokenizer: Tokenizer) -> Documents:
    """The documents of a source whose text has `min_length` tokens, whatever the context of an arm.

    They are tokenized once to be counted and once more to be stored.
    """
    if not source.min_length:
        return source.documents

    def documents() -> Iterator[str]:
        waiting = iter(source.documents())
        while batch := list(islice(waiting, _BATCH)):
            for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
                if len(ids) - tokenizer.added >= source.min_length:
                    yield text

    return documents


def _still_holds(known: Mapping[str, Any], source: Source, tokenizer: str) -> bool:
    stamp = source.stamp()
    files = [{key: file.get(key) for key in STAMP} for file in known.get("files", [])]
    return (
        known.get("tokenizer") == tokenizer
        and known.get("declared") == stamp["declared"]
        and known.get("generator") == stamp.get("generator")
        and files == stamp.get("files", [])
        and is_complete(Path(known["tokens"]))
    )


def _check_not_empty(source: Source, summary: Split) -> None:
    if summary.train.documents:
        return
    if summary.held_out.documents:
        raise UserError(
            f"source `{source.name}`: all of its {summary.held_out.documents} documents are held out for evaluation; "
            "lower `held_out` or add documents"
        )
    if source.min_length:
        raise UserError(
            f"source `{source.name}`: none of its documents has {source.min_length:,} tokens; lower min_length"
        )
    raise UserError(f"source `{source.name}`: it has no text")
