"""One segment: from the state that it starts from to the one that it is named after, in however many attempts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import transformers
from transformers import PreTrainedModel

from harness.data.loader import Loader, served
from harness.data.token_store import TokenSource
from harness.plan.cost import ModelShape, shape_of
from harness.store import manifests, metrics, states
from harness.store.attempts import Attempt, Fenced, begin
from harness.store.checkpoints import CheckpointMarker, weights_hash
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.study.errors import UserError
from harness.train.average import WeightAverage, decay_at
from harness.train.checkpoint import (
    load_average,
    load_cursor,
    load_optimizer,
    remove_checkpoints,
    remove_leftovers,
    write_checkpoint,
)
from harness.train.loop import Loop, Update, piece_at, steps_before
from harness.train.model import load_config, load_model
from harness.train.numerics import Numerics
from harness.train.optimizer import build_optimizer
from harness.train.packing import check_isolation
from harness.train.record import Progress, Recorder
from harness.train.rope import resolve_rope, set_context
from harness.train.start import Start, find_start, fingerprint_at

CONSTANT_IN_A_SEGMENT = ("batch_tokens", "context", "optimizer", "precision")
# While a segment is trained, the checkpoint before the newest stays, should the newest turn out damaged.
KEPT_WHILE_TRAINING = 2


@dataclass(frozen=True)
class TrainSettings:
    """How to train; names nothing.

    checkpoint_every: path tokens between two checkpoints inside the segment, None for one at its end alone.
    keep: `all` checkpoints, the `last`, or a number N: the last and the first at or past each multiple of N path
        tokens, which are then written, too. stop_after_steps: leave, with a checkpoint, after that many updates.
    code: the tree hash of the code that runs, for the record.
    """

    numerics: Numerics
    checkpoint_every: int | None = None
    keep: int | Literal["last", "all"] = "last"
    stop_after_steps: int | None = None
    code: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. tokens: of the path, reached. steps: updates that this attempt made."""

    kind: Literal["trained", "diverged", "stopped", "fenced"]
    tokens: int
    steps: int


def train_segment(
    folder: Folder,
    segment_id: str,
    settings: TrainSettings,
    progress: Progress = lambda fields: None,
    extra: Sequence[Mapping[str, Any]] = (),
) -> Outcome:
    """Train one segment to its end, from its newest whole checkpoint, else from where its path can be taken up.

    extra: checkpoints of other states that lie on this path, as {"path", "tokens"}. SIGTERM and SIGUSR2 end the attempt
    with a checkpoint after the current update. A segment that is done is left alone; a diverged one is an outcome, not
    an error. Raises UserError when the state that it starts from is damaged or does not fit it.
    """
    state = folder.state(segment_id)
    try:
        done = states.verify_state(state)
    except Damaged:
        done = None  # trained again, from its newest whole checkpoint
    if done is not None:
        return Outcome(done.outcome, done.tokens, 0)
    segment = states.read_segment(state)
    attempt = begin(state, _environment(settings))
    try:
        with StopRequest() as stop:
            outcome = _train(folder, segment, attempt, settings, progress, extra, stop)
    except Fenced as reason:
        attempt.finish("fenced", error=str(reason))
        return Outcome("fenced", segment["tokens_from"], 0)
    except BaseException as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        attempt.failed(what)
        raise
    attempt.finish(outcome.kind, tokens=outcome.tokens, steps=outcome.steps)
    return outcome


class StopRequest:
    """While entered, SIGTERM and SIGUSR2 are requests: `signal` holds the name of the first, None while there is none.

    Outside the main thread Python delivers no signals; there it never holds one.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR2):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


def _train(
    folder: Folder,
    segment: Mapping[str, Any],
    attempt: Attempt,
    settings: TrainSettings,
    progress: Progress,
    extra: Sequence[Mapping[str, Any]],
    stop: StopRequest,
) -> Outcome:
    start = find_start(folder, segment, attempt, extra)
    attempt.event("attempt_started", tokens=start.tokens)
    remove_leftovers(attempt.state)
    end = segment["tokens_to"]
    loop = prepare(folder, segment, start, settings.numerics)
    if start.own and start.tokens == end:  # killed between its last checkpoint and its marker
        loss = (metrics.last_row(attempt.state) or {}).get("loss")
        return _finish(attempt, segment, start.marker, settings, 0, {"loss": loss, "served": _served(loop)})
    recorder = Recorder(attempt, segment, _shape(folder), start.tokens, progress)
    every = settings.checkpoint_every
    model_folder = start.path / "model"  # whose tokenizer goes along: the newest checkpoint's, which is never removed
    while True:
        if stop.signal is not None or recorder.steps == settings.stop_after_steps:
            attempt.event("stopped", signal=stop.signal or "stop_after_steps", tokens=loop.tokens)
            return Outcome("stopped", loop.tokens, recorder.steps)
        before = loop.tokens
        loop.update()
        steps = recorder.steps + loop.unseen
        due = every is not None and loop.tokens // every > before // every
        due = due or reaches_multiple(before, loop.tokens, settings.keep)
        due = due or loop.tokens == end or stop.signal is not None or steps == settings.stop_after_steps
        if due or loop.unseen >= settings.numerics.look_every:
            seen = loop.look()
            recorder.updates(seen)
            if not seen[-1].finite:
                return _diverge(attempt, segment, seen[-1], recorder)
        if due:
            recorder.flush()
            marker = _save(attempt, segment, loop, model_folder, settings.keep)
            model_folder = marker.model
            recorder.pause()
        if loop.tokens == end:
            summary = {**recorder.summary(), "served": _served(loop)}
            return _finish(attempt, segment, marker, settings, recorder.steps, summary)


def prepare(folder: Folder, segment: Mapping[str, Any], start: Start, numerics: Numerics) -> Loop:
    """Model, optimizer and data as they were when the checkpoint `start` was written, as this segment wants them."""
    science = _constant_science(segment)
    context = science["context"]
    base = manifests.read_base(folder)
    if base is None:
        raise UserError(f"{folder.base_manifest} is missing or damaged; `ablate run` resolves the base again.")
    config = load_config(start.path / "model")
    length, positions = context["length"], base["max_positions"]
    set_context(config, resolve_rope(context["rope"], base["rope"], length, positions), length, positions)
    model = load_model(start.path / "model", config).to(numerics.device)
    if context["documents"] == "masked":
        check_isolation(model)
    optimizer = build_optimizer(model, science["optimizer"])
    if not switches_optimizer(segment["pieces"], start.tokens):
        load_optimizer(start.path, model, optimizer)
    sources = _open_sources(folder, segment)
    loader = Loader(segment["pieces"], sources, load_cursor(start.path), start.tokens)
    average = _average(segment, start, model)
    return Loop(model, optimizer, loader, segment["pieces"], numerics, average)


def switches_optimizer(pieces: Sequence[Mapping[str, Any]], tokens: int) -> bool:
    """Whether another optimizer takes over at `tokens` of the path: its state begins cold."""
    if tokens == 0 or tokens >= pieces[-1]["end"]:
        return False
    before, after = (piece_at(pieces, at)["science"]["optimizer"]["name"] for at in (tokens - 1, tokens))
    return bool(before != after)


def _average(segment: Mapping[str, Any], start: Start, model: PreTrainedModel) -> WeightAverage | None:
    """The moving average of the weights: the checkpoint's where the path goes on with it, else begun at its weights."""
    last = min(start.tokens, segment["tokens_to"] - 1)  # at the segment's end nothing is left to do but to say so
    decay = decay_at(segment["pieces"], last)
    if decay is None:
        return None
    average = WeightAverage(model, decay)
    if decay_at(segment["pieces"], start.tokens - 1) == decay:
        average.load(load_average(start.path))
    return average


def _constant_science(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The science of the segment's pieces, checked to change in nothing that a live model and optimizer hold."""
    within = [piece["science"] for piece in segment["pieces"] if piece["end"] > segment["tokens_from"]]
    for name in CONSTANT_IN_A_SEGMENT:
        if any(science[name] != within[0][name] for science in within):
            raise ValueError(f"segment {segment['id']}: `{name}` changes inside it")
    science: Mapping[str, Any] = piece_at(segment["pieces"], segment["tokens_from"])["science"]
    return science


def _open_sources(folder: Folder, segment: Mapping[str, Any]) -> dict[str, TokenSource]:
    """Every source that the path names, past stages included: their cursors go along."""
    sources = {}
    for name in sorted({name for piece in segment["pieces"] for name in piece["science"]["mixture"]}):
        manifest = manifests.read_source(folder, name)
        if manifest is None:
            raise UserError(f"{folder.source_manifest(name)} is missing or damaged; `ablate run` resolves it again.")
        sources[name] = TokenSource.open(manifest["tokens"])
    return sources


def _shape(folder: Folder) -> ModelShape:
    shape = shape_of(manifests.read_base(folder), None)
    assert shape is not None, "a manifest has a shape"
    return shape


def _save(
    attempt: Attempt, segment: Mapping[str, Any], loop: Loop, tokenizer: Path, keep: int | str
) -> CheckpointMarker:
    fingerprint = fingerprint_at(segment, loop.tokens)
    marker = write_checkpoint(
        attempt,
        loop.model,
        loop.optimizer,
        loop.loader.cursor(),
        tokenizer,
        fingerprint,
        loop.tokens,
        loop.step,
        loop.average,
    )
    attempt.event("checkpoint", tokens=loop.tokens)
    if keep != "all":
        newest = attempt.state.checkpoint_tokens()[-KEPT_WHILE_TRAINING:]
        remove_checkpoints(attempt, {*newest, *_multiples(attempt, segment, keep)})
    return marker


def reaches_multiple(before: int, tokens: int, keep: int | str) -> bool:
    """Whether an update from `before` to `tokens` is the first at or past a multiple of `keep`; never for a word."""
    return isinstance(keep, int) and tokens // keep > before // keep


def _multiples(attempt: Attempt, segment: Mapping[str, Any], keep: int | str) -> set[int]:
    """The checkpoints that `keep: every N` holds on to, by the path tokens they were written at."""

    def before(tokens: int) -> int:
        return tokens - int(piece_at(segment["pieces"], tokens - 1)["science"]["batch_tokens"])

    return {at for at in attempt.state.checkpoint_tokens() if at and reaches_multiple(before(at), at, keep)}


def _finish(
    attempt: Attempt,
    segment: Mapping[str, Any],
    marker: CheckpointMarker,
    settings: TrainSettings,
    steps: int,
    summary: Mapping[str, Any],
) -> Outcome:
    """Say that the state is there; only then let go of the checkpoints before its end."""
    attempt.check_owner()
    weights = weights_hash(marker.files)
    states.write_done(attempt.state, "trained", marker.tokens, marker.step, weights, marker.tokens, summary)
    attempt.event("finished", tokens=marker.tokens, steps=steps)
    if settings.keep != "all":
        remove_checkpoints(attempt, {marker.tokens, *_multiples(attempt, segment, settings.keep)})
    return Outcome("trained", marker.tokens, steps)


def _diverge(attempt: Attempt, segment: Mapping[str, Any], broken: Update, recorder: Recorder) -> Outcome:
    """Record a run that ended before the update whose loss or gradient was not finite."""
    recorder.flush()
    attempt.check_owner()
    batch = piece_at(segment["pieces"], broken.tokens - 1)["science"]["batch_tokens"]
    tokens, what = broken.tokens - batch, f"loss {broken.loss}, gradient norm {broken.grad_norm}"
    attempt.event("diverged", tokens=tokens, what=what)
    step = steps_before(segment["pieces"], tokens)
    states.write_done(attempt.state, "diverged", tokens, step, None, None, {"what": what, "lr": broken.lr})
    return Outcome("diverged", tokens, recorder.steps - 1)


def _served(loop: Loop) -> dict[str, Any]:
    return {name: asdict(drawn) for name, drawn in served(loop.loader).items()}


def _environment(settings: TrainSettings) -> dict[str, Any]:
    return {
        "numerics": settings.numerics.record(),
        "code": dict(settings.code),
        "versions": {"transformers": transformers.__version__},
    }
