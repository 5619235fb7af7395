"""Where an attempt takes its segment up: its own newest whole checkpoint, one of a shared path, or its parent's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.plan.fingerprint import base_state, state_at
from harness.plan.science import read_pieces
from harness.store import checkpoints
from harness.store.attempts import Attempt
from harness.store.checkpoints import CheckpointMarker
from harness.store.layout import Folder
from harness.store.markers import MARKER, Damaged
from harness.study.errors import UserError

# Until a file that one machine has written is seen by another, over a network's file system.
VISIBLE_SECONDS = 60.0


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from. own: it is the segment's, written by an earlier attempt."""

    marker: CheckpointMarker
    own: bool

    @property
    def path(self) -> Path:
        return self.marker.path

    @property
    def tokens(self) -> int:
        return self.marker.tokens


def find_start(
    folder: Folder, segment: Mapping[str, Any], attempt: Attempt, extra: Sequence[Mapping[str, Any]] = ()
) -> Start:
    """The whole checkpoint with the most tokens among the segment's own and those in `extra`; its parent's where there
    is none. It may be at the segment's end: then nothing is left to train.

    extra: {"path", "tokens"} of checkpoints of other states on this path; at equal tokens the segment's own is taken.
    One of its own or in `extra` that is damaged, or holds a state that is not on this path, is passed over with an
    event `checkpoint_damaged`. Raises UserError when it comes to the parent's, and that one is damaged.
    """
    whole, damaged = checkpoints.complete(attempt.state)
    for reason in damaged:
        attempt.event("checkpoint_damaged", reason=str(reason))
    first, last = segment["tokens_from"], segment["tokens_to"]
    found = [Start(marker, own=True) for marker in whole if _is_on_path(marker, segment, attempt)]
    for candidate in extra:
        if first < candidate["tokens"] <= last and candidate["tokens"] > (found[0].tokens if found else first):
            try:
                marker = checkpoints.verify(Path(candidate["path"]))
            except Damaged as reason:
                attempt.event("checkpoint_damaged", reason=str(reason))
            else:
                found += [Start(marker, own=False)] if _is_on_path(marker, segment, attempt) else []
    return max(found, key=lambda start: start.tokens) if found else _parent(folder, segment)


def to_json(start: Start) -> dict[str, Any]:
    """A start as rank 0 tells the others of it."""
    return {"path": str(start.path), "own": start.own}


def from_json(told: Mapping[str, Any]) -> Start:
    """The start that rank 0 has checked. Raises Damaged when this machine does not get to see it."""
    path = Path(told["path"])
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (path / MARKER).exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    return Start(checkpoints.read_marker(path), told["own"])


def _is_on_path(marker: CheckpointMarker, segment: Mapping[str, Any], attempt: Attempt) -> bool:
    fits = marker.fingerprint == fingerprint_at(segment, marker.tokens)
    if not fits:
        reason = f"{marker.path} holds state {marker.fingerprint}, which is not on the path of {segment['id']}"
        attempt.event("checkpoint_damaged", reason=reason)
    return fits


def _parent(folder: Folder, segment: Mapping[str, Any]) -> Start:
    path = folder.state(segment["parent"]).checkpoint(segment["tokens_from"])
    try:
        return Start(checkpoints.verify(path), own=False)
    except Damaged as reason:
        raise UserError(
            f"segment {segment['id']} ({segment['stage']}) starts from a checkpoint that is not whole: {reason}. "
            f"State {segment['parent']} must be trained again."
        ) from None


def fingerprint_at(segment: Mapping[str, Any], tokens: int) -> str:
    """The name of the state after `tokens` of a segment's path; at its end the segment's own id."""
    if tokens == segment["tokens_to"]:
        return str(segment["id"])
    pieces, data_seeds = read_pieces(segment["pieces"])
    return state_at(base_state(segment["base"]), pieces, data_seeds, tokens)
