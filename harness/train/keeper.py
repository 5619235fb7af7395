"""What is kept of a segment while it is trained: metrics, checkpoints and the marker, written by rank 0.

Of a sharded model every rank writes its part of the checkpoints.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.data.loader import served
from harness.plan.cost import ModelShape, shape_of
from harness.store import manifests, metrics, states
from harness.store.attempts import Attempt
from harness.store.checkpoints import CheckpointMarker, weights_hash
from harness.store.kept import before, multiples
from harness.store.layout import Folder, StateFolder
from harness.train.checkpoint import remove_checkpoints, write_checkpoint
from harness.train.loop import Loop, Update, steps_before
from harness.train.ranks import ALONE, Ranks
from harness.train.record import Progress, Recorder
from harness.train.shard_saves import ShardSaves
from harness.train.sharding import Shards
from harness.train.start import Start, fingerprint_at

# While a segment is trained, the checkpoint before the newest stays, should the newest turn out damaged.
KEPT_WHILE_TRAINING = 2


class Onlooker:
    """Stands on the other ranks where rank 0 has its Keeper: counts the updates, and writes this rank's shards."""

    def __init__(self, state: StateFolder, segment: Mapping[str, Any], ranks: Ranks) -> None:
        self.steps = 0
        self._segment = segment
        self._shards = self._saves(state, ranks)

    def _saves(self, state: StateFolder, ranks: Ranks) -> ShardSaves:
        return ShardSaves(state, ranks)

    def ran(self, loop: Loop) -> None:
        """Say what ran in the first update. Raises UserError where that is not what was asked for."""
        loop.witness.record(loop.numerics.kernels, loop.forward.attention.kind)

    def updates(self, seen: list[Update]) -> None:
        """Take in the updates of one look."""
        self.steps += len(seen)

    def save(self, loop: Loop) -> None:
        """Write a checkpoint of where `loop` is, or begin to."""
        if isinstance(loop.weights, Shards):
            self._save_shards(loop, None)

    def _save_shards(self, loop: Loop, tokenizer: Path | None) -> None:
        """The one at the segment's end is whole: it is evaluated, and others start from it."""
        write = self._shards.whole if loop.tokens == self._segment["tokens_to"] else self._shards.begin
        write(loop, fingerprint_at(self._segment, loop.tokens), tokenizer)

    def poll(self) -> None:
        """Between two updates: bring on what is being written."""
        self._shards.poll()

    def abandon(self) -> None:
        """Give up what is being written: training has failed."""
        self._shards.abandon()

    def stopped(self, loop: Loop, number: int) -> None:
        """Say that training stops for the signal `number`."""
        self._shards.settle()

    def finished(self, loop: Loop) -> None:
        """Say that the state is there."""

    def finished_before(self, loop: Loop) -> None:
        """Say that the state is there whose updates an earlier attempt has made, here or in another segment."""

    def diverged(self, broken: Update) -> None:
        """Record a run that ended before the update `broken`, whose loss or gradient was not finite."""
        self._shards.settle()


class Keeper(Onlooker):
    """Writes what an attempt makes.

    keep: which checkpoints stay, as `TrainSettings` has it. Its methods raise Fenced when a newer attempt has begun,
    and WriteFailed.
    """

    def __init__(
        self,
        folder: Folder,
        segment: Mapping[str, Any],
        attempt: Attempt,
        start: Start,
        keep: int | str,
        progress: Progress,
        ranks: Ranks = ALONE,
    ) -> None:
        self._attempt = attempt
        self._keep = keep
        super().__init__(attempt.state, segment, ranks)
        self._recorder = Recorder(attempt, segment, _shape(folder), start.tokens, progress)
        self._newest = start.marker

    def ran(self, loop: Loop) -> None:
        said = loop.witness.record(loop.numerics.kernels, loop.forward.attention.kind)
        self._attempt.event("kernels", **said)

    def _saves(self, state: StateFolder, ranks: Ranks) -> ShardSaves:
        return ShardSaves(state, ranks, self._attempt, self._written)

    def updates(self, seen: list[Update]) -> None:
        super().updates(seen)
        self._recorder.updates(seen)

    def switched(self, carried: Mapping[str, Any] | None) -> None:
        """Say what crossed into the stage that begins here; None where none begins."""
        if carried is not None:
            self._attempt.event("stage_switched", **carried)

    def save(self, loop: Loop) -> None:
        self._recorder.flush()
        # The tokenizer goes along from the newest checkpoint, which is never removed.
        tokenizer = self._newest.model
        if isinstance(loop.weights, Shards):
            self._save_shards(loop, tokenizer)
        else:
            self._written(_write(self._attempt, self._segment, loop, tokenizer))
        self._recorder.pause()

    def _written(self, marker: CheckpointMarker) -> None:
        """A checkpoint is there: older ones may go."""
        self._newest = marker
        attempt = self._attempt
        attempt.event("checkpoint", tokens=marker.tokens)
        if self._keep != "all":
            newest = attempt.state.checkpoint_tokens()[-KEPT_WHILE_TRAINING:]
            remove_checkpoints(attempt, {*newest, *_multiples(attempt, self._segment, self._keep)})

    def stopped(self, loop: Loop, number: int) -> None:
        super().stopped(loop, number)
        self._attempt.event("stopped", signal=signal.Signals(number).name, tokens=loop.tokens)

    def finished(self, loop: Loop) -> None:
        self._finish({**self._recorder.summary(), **_left_out(loop), "served": _served(loop)})

    def finished_before(self, loop: Loop) -> None:
        loss = (metrics.last_row(self._attempt.state) or {}).get("loss")
        self._finish({"loss": loss, **_left_out(loop), "served": _served(loop)})

    def _finish(self, summary: Mapping[str, Any]) -> None:
        """Say that the state is there; only then let go of the checkpoints before its end."""
        attempt, marker = self._attempt, self._newest
        attempt.check_owner()
        weights = weights_hash(marker.files)
        states.write_done(attempt.state, "trained", marker.tokens, marker.step, weights, marker.tokens, summary)
        attempt.event("finished", tokens=marker.tokens, steps=self.steps)
        if self._keep != "all":
            remove_checkpoints(attempt, {marker.tokens, *_multiples(attempt, self._segment, self._keep)})

    def diverged(self, broken: Update) -> None:
        super().diverged(broken)
        self._recorder.flush()
        attempt, pieces = self._attempt, self._segment["pieces"]
        attempt.check_owner()
        tokens, what = before(pieces, broken.tokens), f"loss {broken.loss}, gradient norm {broken.grad_norm}"
        attempt.event("diverged", tokens=tokens, what=what)
        step = steps_before(pieces, tokens)
        states.write_done(attempt.state, "diverged", tokens, step, None, None, {"what": what, "lr": broken.lr})


def _write(attempt: Attempt, segment: Mapping[str, Any], loop: Loop, tokenizer: Path) -> CheckpointMarker:
    return write_checkpoint(
        attempt,
        loop.model,
        loop.optimizer,
        loop.feed.cursor(),
        tokenizer,
        fingerprint_at(segment, loop.tokens),
        loop.tokens,
        loop.step,
        loop.average,
        loop.spikes,
    )


def _multiples(attempt: Attempt, segment: Mapping[str, Any], keep: int | str) -> set[int]:
    return multiples(segment["pieces"], attempt.state.checkpoint_tokens(), keep)


def _served(loop: Loop) -> dict[str, Any]:
    return {name: asdict(drawn) for name, drawn in served(loop.feed).items()}


def _left_out(loop: Loop) -> dict[str, int]:
    """How many updates of the path were spikes, since `skip_spikes` began; nothing where it is off."""
    return {} if loop.spikes is None else {"skipped": loop.spikes.skipped}


def _shape(folder: Folder) -> ModelShape:
    shape = shape_of(manifests.read_base(folder), None)
    assert shape is not None, "a manifest has a shape"
    return shape
