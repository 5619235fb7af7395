"""Checkpoints: `checkpoints/<tokens>/` with a Hugging Face `model/` folder, optimizer, cursor and a marker.

One that several ranks have written inside a segment may be sharded: weights and optimizer lie in `shards/`, a file of
each rank, and `model/` holds configuration and tokenizer alone. Its marker has a schema of its own, which versions that
know no shards refuse. The last checkpoint of a segment is never sharded.

A checkpoint is whole when its marker is there and every checksum holds. It is written in a folder aside, made durable
and renamed; the marker is its last file. Several may stand; a damaged one is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.atomic import fsync_tree, like_any_file, publish
from harness.store.layout import StateFolder
from harness.store.markers import (
    MARKER,
    Damaged,
    FileRecord,
    checksum_files,
    read_marked,
    verify_files,
    write_marker,
)

SCHEMA = 1
SHARDED_SCHEMA = 2
SHARDS = "shards"
# Files of a model folder that decide how its tokenizer encodes; a folder has some of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class CheckpointMarker:
    """What a whole checkpoint says of itself. `fingerprint` names the state after `tokens`; step counts updates."""

    path: Path
    fingerprint: str
    tokens: int
    step: int
    files: Mapping[str, Mapping[str, Any]]

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def sharded(self) -> bool:
        """Whether `model` lacks the weights, which lie in shards."""
        return any(name.startswith(f"{SHARDS}/") for name in self.files)


def seal(staged: Path, final: Path, fingerprint: str, tokens: int, step: int) -> CheckpointMarker:
    """Checksum a filled staging folder, mark it and give it its final name, durably.

    A whole checkpoint of the same state that has the name already stays: it was written by somebody who was faster. A
    sharded one does not stay before one that is not: the end of a segment is opened by those who know no shards.
    """
    like_any_file(staged)
    fsync_tree(staged)
    files = checksum_files(staged)
    sharded = any(name.startswith(f"{SHARDS}/") for name in files)
    schema = SHARDED_SCHEMA if sharded else SCHEMA
    write_marker(staged, schema, {"fingerprint": fingerprint, "tokens": tokens, "step": step}, files)
    publish(staged, final, lambda there: _serves(there, fingerprint, sharded))
    return read_marker(final)


def _serves(path: Path, fingerprint: str, sharded: bool) -> bool:
    """Whether a checkpoint is a whole one of the state, in shards only where that will do."""
    try:
        marker = verify(path)
    except Damaged:
        return False
    return marker.fingerprint == fingerprint and (sharded or not marker.sharded)


def read_marker(path: Path) -> CheckpointMarker:
    """The marker of the checkpoint in `path`, its files unchecked. Raises Damaged, also when there is none."""
    try:
        value = read_marked(path / MARKER, SHARDED_SCHEMA, older=(SCHEMA,))
    except FileNotFoundError:
        raise Damaged(f"{path} has no marker: it was never finished") from None
    try:
        return CheckpointMarker(
            path=path,
            fingerprint=value["fingerprint"],
            tokens=int(value["tokens"]),
            step=int(value["step"]),
            files=value["files"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path / MARKER} lacks {error}") from None


def verify(path: Path, contents: bool = True) -> CheckpointMarker:
    """The marker of the checkpoint in `path` after checking its files: sizes, and (contents) checksums."""
    marker = read_marker(path)
    verify_files(path, marker.files, contents)
    return marker


def complete(state: StateFolder, contents: bool = True) -> tuple[list[CheckpointMarker], list[Damaged]]:
    """The state's whole checkpoints, newest first, and what is wrong with the others."""
    whole: list[CheckpointMarker] = []
    damaged: list[Damaged] = []
    for tokens in reversed(state.checkpoint_tokens()):
        try:
            whole.append(verify(state.checkpoint(tokens), contents))
        except Damaged as reason:
            damaged.append(reason)
    return whole, damaged


def tokenizer_files(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """SHA-256 of the tokenizer's files in a checkpoint's `model/`, by name; empty where there is none."""
    paths = {name: f"model/{name}" for name in TOKENIZER_FILES}
    return {name: str(files[path]["sha256"]) for name, path in paths.items() if path in files}


def weights_hash(files: Mapping[str, Mapping[str, Any] | FileRecord]) -> str:
    """The name of a model folder: SHA-256 over the sorted (file, SHA-256) of everything under `model/`.

    It covers weights, configuration and tokenizer: all that an evaluation's result depends on, and nothing else.
    """
    hasher = hashlib.sha256()
    for name in sorted(files):
        if name.startswith("model/"):
            record = files[name]
            checksum = record.sha256 if isinstance(record, FileRecord) else record["sha256"]
            hasher.update(f"{name.removeprefix('model/')}\0{checksum}\n".encode())
    return hasher.hexdigest()
