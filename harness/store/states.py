"""The two JSON files of a state: `segment.json` (what it is) and `DONE.json` (that it is there)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.store.atomic import write_json, writing
from harness.store.checkpoints import CheckpointMarker, verify
from harness.store.layout import StateFolder
from harness.store.markers import MARKER, Damaged, read_marked

SCHEMA = 1
Outcome = Literal["trained", "diverged"]


@dataclass(frozen=True)
class Done:
    """A finished state. A diverged one has no checkpoint at its end; its outcome is a result, not a failure.

    tokens: path tokens reached. step: updates of the whole path. weights: `checkpoints.weights_hash`, None if diverged.
    """

    outcome: Outcome
    tokens: int
    step: int
    weights: str | None
    checkpoint: str | None
    summary: Mapping[str, Any]


def write_segment(state: StateFolder, segment: Mapping[str, Any]) -> None:
    """Write `segment.json` unless it is there and equal already."""
    value = {"schema": SCHEMA, **{k: v for k, v in segment.items() if k != "schema"}}
    try:
        if read_segment(state) == value:
            return
    except (FileNotFoundError, Damaged):
        pass
    write_json(state.segment_json, value)


def read_segment(state: StateFolder) -> dict[str, Any]:
    """The segment as its job sees it. Raises FileNotFoundError or Damaged."""
    return read_marked(state.segment_json, SCHEMA)


def newest_checkpoint(state: StateFolder) -> int | None:
    """Path tokens of the newest complete checkpoint, None when there is none."""
    there = [tokens for tokens in state.checkpoint_tokens() if (state.checkpoint(tokens) / MARKER).exists()]
    return max(there, default=None)


def write_done(
    state: StateFolder,
    outcome: Outcome,
    tokens: int,
    step: int,
    weights: str | None,
    checkpoint: int | None,
    summary: Mapping[str, Any],
) -> None:
    """Say that the state is there. `checkpoint`: the tokens of its final checkpoint folder."""
    write_json(
        state.done,
        {
            "schema": SCHEMA,
            "fingerprint": state.id,
            "outcome": outcome,
            "tokens": tokens,
            "step": step,
            "weights": weights,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "summary": dict(summary),
        },
    )


def read_done(state: StateFolder) -> Done | None:
    """The state's marker, None when there is none. Raises Damaged when it is not one of this state's."""
    try:
        value = read_marked(state.done, SCHEMA)
    except FileNotFoundError:
        return None
    if value.get("fingerprint") != state.id:
        raise Damaged(f"{state.done} names state {value.get('fingerprint')}, not the folder that it lies in")
    try:
        return Done(
            outcome=value["outcome"],
            tokens=int(value["tokens"]),
            step=int(value["step"]),
            weights=value["weights"],
            checkpoint=value["checkpoint"],
            summary=value["summary"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{state.done} lacks {error}") from None


def verify_state(state: StateFolder, contents: bool = True) -> Done | None:
    """The state's marker after checking that its final checkpoint is whole. Raises Damaged; None when not done."""
    done = read_done(state)
    if done is not None and done.checkpoint is not None:
        final_checkpoint(state, done, contents)
    return done


def final_checkpoint(state: StateFolder, done: Done, contents: bool = True) -> CheckpointMarker:
    """The checked marker of a finished state's last checkpoint. Raises Damaged."""
    assert done.checkpoint is not None, "a diverged state has none"
    marker = verify(state.checkpoints / done.checkpoint, contents)
    if marker.fingerprint != state.id:
        raise Damaged(f"{marker.path} holds state {marker.fingerprint}, not {state.id}")
    return marker


def set_aside(state: StateFolder) -> None:
    """Put a state's marker and checkpoints into `before/`, where no attempt finds them: it is to be made again.

    May be interrupted and called again. What lies in `before/` stays until `forget_before`; a state that was begun
    since then and is not whole is not kept beside it.
    """
    with writing(state.before):
        if state.done.exists() and state.before.exists():
            shutil.rmtree(state.before)  # what took its place was whole
        state.before.mkdir(exist_ok=True)
        if state.done.exists():
            state.done.rename(state.before / state.done.name)
        if not state.checkpoints.exists():
            return
        aside = state.before / state.checkpoints.name
        if aside.exists():
            shutil.rmtree(state.checkpoints)
        else:
            state.checkpoints.rename(aside)


def forget_before(state: StateFolder) -> None:
    """Remove what `set_aside` has kept. Call when the state is whole again."""
    if state.before.exists():
        shutil.rmtree(state.before)
