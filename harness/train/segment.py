"""One segment: from the state that it starts from to the one that it is named after, in however many attempts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from types import FrameType, TracebackType
from typing import Any, Literal

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from harness.data.loader import Loader
from harness.data.token_store import TokenSource
from harness.plan.rope import head_dim
from harness.store import manifests, states
from harness.store.attempts import Attempt, Fenced, begin
from harness.store.kept import before, reaches_multiple
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged
from harness.study.errors import UserError
from harness.train.average import WeightAverage, decay_at
from harness.train.checkpoint import load_average, load_cursor, load_optimizer, load_spikes, remove_leftovers
from harness.train.collector import Collector, held_back
from harness.train.keeper import Keeper, Onlooker
from harness.train.kernels import applied
from harness.train.layers import prepare_layers
from harness.train.loop import Loop, piece_at
from harness.train.model import config_from_fields, load_config, load_model
from harness.train.numerics import Numerics
from harness.train.optimizer import build_optimizer
from harness.train.packing import check_isolation
from harness.train.ranks import ALONE, RankFailed, Ranks
from harness.train.record import Progress
from harness.train.rope import resolve_rope, set_context
from harness.train.spikes import SpikeWindow, window_of
from harness.train.start import Start, find_start, from_json, to_json
from harness.train.switch import begins_cold, carried_over

CONSTANT_IN_A_SEGMENT = ("batch_tokens", "context", "optimizer", "optimizer_from", "precision")


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
    ranks: Ranks = ALONE,
) -> Outcome:
    """Train one segment to its end, from its newest whole checkpoint, else from where its path can be taken up.

    extra: checkpoints of other states that lie on this path, as {"path", "tokens"}. SIGTERM and SIGUSR2 end the attempt
    with a checkpoint after the current update. A segment that is done is left alone; a diverged one is an outcome, not
    an error. Raises UserError when the state that it starts from is damaged or does not fit it.

    ranks: every one of them calls this with equal arguments, for one attempt, of rank 0, which alone writes and reports
    progress; a signal to any of them stops all. All return the same outcome. Raises RankFailed where another rank
    failed (rank 0 being fenced is an outcome) and RankLost where one died.
    """
    settings = replace(settings, numerics=replace(settings.numerics, world=ranks.world))
    state = folder.state(segment_id)
    with ranks.together():
        done = ranks.led(lambda: _done(state))
        if done is not None:
            return Outcome(**done)
        segment = states.read_segment(state)
        settings = replace(settings, numerics=settings.numerics.for_model(_base_config(folder)))
        if not ranks.leads:
            return _follow(folder, segment, settings, ranks)
        return _attempt(folder, segment, settings, progress, extra, ranks)


def _done(state: StateFolder) -> dict[str, Any] | None:
    """The outcome of a segment that is done and whole; one that is damaged is trained again, from a checkpoint."""
    try:
        done = states.verify_state(state)
    except Damaged:
        return None
    return None if done is None else asdict(Outcome(done.outcome, done.tokens, 0))


def _attempt(
    folder: Folder,
    segment: Mapping[str, Any],
    settings: TrainSettings,
    progress: Progress,
    extra: Sequence[Mapping[str, Any]],
    ranks: Ranks,
) -> Outcome:
    """Train as rank 0, or alone."""
    attempt = begin(folder.state(segment["id"]), _environment(settings))
    try:
        with StopRequest() as stop, ranks.together(), ExitStack() as stack:
            start = _start(ranks, lambda: _find_start(folder, segment, attempt, extra))
            loop = prepare(folder, segment, start, settings.numerics, ranks, stack)
            keeper = Keeper(folder, segment, attempt, start, settings.keep, progress)
            keeper.switched(carried_over(segment, start.tokens))
            outcome = _train(loop, segment, start, keeper, settings, stop, ranks)
    except Fenced as reason:
        attempt.finish("fenced", error=str(reason))
        return Outcome("fenced", segment["tokens_from"], 0)
    except BaseException as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        attempt.failed(what)
        raise
    attempt.finish(outcome.kind, tokens=outcome.tokens, steps=outcome.steps)
    return outcome


def _follow(folder: Folder, segment: Mapping[str, Any], settings: TrainSettings, ranks: Ranks) -> Outcome:
    """Train as another rank than 0: the same updates, and no word of them."""
    try:
        with StopRequest() as stop, ranks.together(), ExitStack() as stack:
            start = _start(ranks)
            loop = prepare(folder, segment, start, settings.numerics, ranks, stack)
            return _train(loop, segment, start, Onlooker(), settings, stop, ranks)
    except RankFailed as reason:
        if reason.kind == Fenced.__name__:
            return Outcome("fenced", segment["tokens_from"], 0)
        raise


class StopRequest:
    """While entered, SIGTERM and SIGUSR2 are requests: `number` is that of the first, 0 while there is none.

    Outside the main thread Python delivers no signals; there it stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
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
        self.number = self.number or number


def _base_config(folder: Folder) -> PretrainedConfig:
    """The base model's configuration, from its manifest."""
    return config_from_fields(_base(folder)["config"])


def _base(folder: Folder) -> Mapping[str, Any]:
    base = manifests.read_base(folder)
    if base is None:
        raise UserError(f"{folder.base_manifest} is missing or damaged; `ablate run` resolves the base again.")
    return base


def _find_start(
    folder: Folder, segment: Mapping[str, Any], attempt: Attempt, extra: Sequence[Mapping[str, Any]]
) -> Start:
    start = find_start(folder, segment, attempt, extra)
    attempt.event("attempt_started", tokens=start.tokens)
    remove_leftovers(attempt.state)
    return start


def _start(ranks: Ranks, find: Callable[[], Start] | None = None) -> Start:
    """Where all ranks take the segment up. find: on rank 0, looks for it."""
    found: list[Start] = []

    def look() -> dict[str, Any]:
        assert find is not None, "rank 0 looks"
        found.append(find())
        return to_json(found[0])

    told = ranks.led(look)
    return found[0] if found else from_json(told)


def _train(
    loop: Loop,
    segment: Mapping[str, Any],
    start: Start,
    keeper: Onlooker,
    settings: TrainSettings,
    stop: StopRequest,
    ranks: Ranks,
) -> Outcome:
    """Update after update from `start` on. Every rank decides alike: from equal figures and what they agreed on."""
    end = segment["tokens_to"]
    if start.own and start.tokens == end:  # killed between its last checkpoint and its marker
        keeper.finished_before(loop)
        return Outcome("trained", end, 0)
    told = ranks.agree(stop.number)
    with held_back(settings.numerics.device) as garbage:
        return _updates(loop, segment, keeper, settings, stop, ranks, told, garbage)


def _updates(
    loop: Loop,
    segment: Mapping[str, Any],
    keeper: Onlooker,
    settings: TrainSettings,
    stop: StopRequest,
    ranks: Ranks,
    told: int,
    garbage: Collector,
) -> Outcome:
    end, every = segment["tokens_to"], settings.checkpoint_every
    first = True
    while True:
        if told or keeper.steps == settings.stop_after_steps:
            keeper.stopped(loop, told)
            return Outcome("stopped", loop.tokens, keeper.steps)
        began = loop.tokens
        loop.update()
        if first:
            keeper.ran(loop)
            first = False
        garbage.after_update()
        told = ranks.agree(stop.number)
        steps = keeper.steps + loop.unseen
        due = every is not None and loop.tokens // every > began // every
        due = due or reaches_multiple(began, loop.tokens, settings.keep)
        due = due or loop.tokens == end or told != 0 or steps == settings.stop_after_steps
        if due or loop.unseen >= settings.numerics.look_every:
            seen = loop.look()
            keeper.updates(seen)
            if not seen[-1].finite:
                keeper.diverged(seen[-1])
                return Outcome("diverged", before(segment["pieces"], seen[-1].tokens), keeper.steps - 1)
        if due:
            if ranks.world > 1:
                ranks.check_equal(loop.checksum(), "the weights are")
            keeper.save(loop)
            told = ranks.agree(stop.number)
        if loop.tokens == end:
            keeper.finished(loop)
            return Outcome("trained", end, keeper.steps)


def prepare(
    folder: Folder,
    segment: Mapping[str, Any],
    start: Start,
    numerics: Numerics,
    ranks: Ranks = ALONE,
    stack: ExitStack | None = None,
) -> Loop:
    """Model, optimizer and data as they were when the checkpoint `start` was written, as this segment wants them.

    stack: what is changed of the process while the segment is trained is put back when it is closed. Raises UserError
    when a batch cannot be divided among the ranks, or when they run on unequal machines.
    """
    science = _constant_science(segment)
    context = science["context"]
    ranks.check_rows(science["batch_tokens"], context["length"])
    _check_numerics(numerics, ranks)
    base = _base(folder)
    config = load_config(start.path / "model")
    length, positions = context["length"], base["max_positions"]
    set_context(
        config,
        resolve_rope(context["rope"], base["rope"], length, positions, head_dim(config.to_dict())),
        length,
        positions,
    )
    model = load_model(start.path / "model", config).to(numerics.device)
    if context["documents"] == "masked":
        check_isolation(model)
    (stack or ExitStack()).enter_context(applied(model, numerics.kernels))
    prepare_layers(model, numerics)
    optimizer = build_optimizer(model, science["optimizer"])
    if not begins_cold(segment["pieces"], start.tokens):
        load_optimizer(start.path, model, optimizer)
    sources = _open_sources(folder, segment)
    loader = Loader(segment["pieces"], sources, load_cursor(start.path), start.tokens)
    average = _average(segment, start, model)
    spikes = _spikes(segment, start, model)
    return Loop(model, optimizer, loader, segment["pieces"], numerics, average, ranks, spikes)


def _check_numerics(numerics: Numerics, ranks: Ranks) -> None:
    """Raise UserError unless an update gives this rank the bits that it gives rank 0."""
    of_first = ranks.led(numerics.record)
    differs = [
        f"{name} {of_first[name]!r} and {own!r}" for name, own in numerics.record().items() if of_first[name] != own
    ]
    if differs:
        raise UserError(f"ranks 0 and {ranks.rank} cannot train together, since they differ: {'; '.join(differs)}.")


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


def _spikes(segment: Mapping[str, Any], start: Start, model: PreTrainedModel) -> SpikeWindow | None:
    """The losses that spikes stand out from: the checkpoint's where the path goes on with them, else none yet."""
    last = min(start.tokens, segment["tokens_to"] - 1)
    window, goes_on = window_of(segment["pieces"], start.tokens, last, model.device)
    if window is not None and goes_on:
        window.load(load_spikes(start.path))
    return window


def _constant_science(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The science of the segment's pieces, checked to change in nothing that a live model and optimizer hold."""
    within = [piece["science"] for piece in segment["pieces"] if piece["end"] > segment["tokens_from"]]
    for name in CONSTANT_IN_A_SEGMENT:
        if any(science.get(name) != within[0].get(name) for science in within):
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


def _environment(settings: TrainSettings) -> dict[str, Any]:
    return {
        "numerics": settings.numerics.record(),
        "code": dict(settings.code),
        "versions": {"transformers": transformers.__version__},
    }
