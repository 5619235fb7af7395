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

from harness.store import states
from harness.store.attempts import Attempt, Fenced, begin
from harness.store.kept import before, reaches_multiple
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged
from harness.study.errors import UserError
from harness.train.checkpoint import remove_leftovers
from harness.train.collector import Collector, held_back
from harness.train.keeper import Keeper, Onlooker
from harness.train.loop import Loop
from harness.train.model import config_of_base
from harness.train.numerics import Numerics
from harness.train.parallel import choose, described
from harness.train.prepare import constant_science, prepare, read_base
from harness.train.ranks import ALONE, RankFailed, Ranks
from harness.train.record import Progress
from harness.train.start import Start, find_start, from_json, to_json
from harness.train.switch import carried_over


@dataclass(frozen=True)
class TrainSettings:
    """How to train; names nothing.

    checkpoint_every: path tokens between two checkpoints inside the segment, None for one at its end alone.
    keep: `all` checkpoints, the `last`, or a number N: the last and the first at or past each multiple of N path
        tokens, which are then written, too.
    code: the tree hash of the code that runs, for the record.
    """

    numerics: Numerics
    checkpoint_every: int | None = None
    keep: int | Literal["last", "all"] = "last"
    strategy: str = "auto"
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
        base = read_base(folder)
        strategy = choose(settings.strategy, ranks.world, base["parameters"]["total"])
        numerics = replace(settings.numerics, strategy=strategy).for_model(config_of_base(base["config"]))
        settings = replace(settings, numerics=numerics)
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
    attempt = begin(folder.state(segment["id"]), _environment(settings, segment))
    try:
        with StopRequest() as stop, ranks.together(), ExitStack() as stack:
            start = _start(ranks, lambda: _find_start(folder, segment, attempt, extra))
            loop = prepare(folder, segment, start, settings.numerics, ranks, stack)
            keeper = Keeper(folder, segment, attempt, start, settings.keep, progress, ranks)
            keeper.switched(carried_over(segment, start.tokens))
            outcome = _train(loop, segment, start, keeper, settings, stop, ranks)
    except Fenced as reason:
        attempt.finish("fenced", error=str(reason))
        return Outcome("fenced", segment["tokens_from"], 0)
    except BaseException as error:
        if isinstance(error, RankFailed) and error.kind == Fenced.__name__:
            attempt.finish("fenced", error=str(error))
            return Outcome("fenced", segment["tokens_from"], 0)
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
            keeper = Onlooker(folder.state(segment["id"]), segment, ranks)
            return _train(loop, segment, start, keeper, settings, stop, ranks)
    except Fenced:
        return Outcome("fenced", segment["tokens_from"], 0)
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
    """Train from `start` on. What was being written when something goes wrong is given up."""
    try:
        with held_back(settings.numerics.device) as garbage:
            return _updates(loop, segment, start, keeper, settings, stop, ranks, garbage)
    except BaseException:
        keeper.abandon()
        raise


def _updates(
    loop: Loop,
    segment: Mapping[str, Any],
    start: Start,
    keeper: Onlooker,
    settings: TrainSettings,
    stop: StopRequest,
    ranks: Ranks,
    garbage: Collector,
) -> Outcome:
    """Update after update. Every rank decides alike: from equal figures and what they agreed on."""
    end, every = segment["tokens_to"], settings.checkpoint_every
    if start.tokens == end:
        if not start.own or start.marker.sharded:  # else it was killed between its last checkpoint and its marker
            keeper.save(loop)
        keeper.finished_before(loop)
        return Outcome("trained", end, 0)
    told = ranks.agree(stop.number)
    first = True
    while True:
        if told:
            keeper.stopped(loop, told)
            return Outcome("stopped", loop.tokens, keeper.steps)
        began = loop.tokens
        loop.update()
        if first:
            keeper.ran(loop)
            first = False
        garbage.after_update()
        told = ranks.agree(stop.number)
        keeper.poll()
        due = every is not None and loop.tokens // every > began // every
        due = due or reaches_multiple(began, loop.tokens, settings.keep)
        due = due or loop.tokens == end or told != 0
        if due or loop.unseen >= settings.numerics.look_every:
            seen = loop.look()
            keeper.updates(seen)
            if not seen[-1].finite:
                keeper.diverged(seen[-1])
                return Outcome("diverged", before(segment["pieces"], seen[-1].tokens), keeper.steps - 1)
        if due:
            loop.weights.check_equal()
            keeper.save(loop)
            told = ranks.agree(stop.number)
        if loop.tokens == end:
            keeper.finished(loop)
            return Outcome("trained", end, keeper.steps)


def _environment(settings: TrainSettings, segment: Mapping[str, Any]) -> dict[str, Any]:
    precision = constant_science(segment)["precision"]
    return {
        "numerics": settings.numerics.record(),
        "precision": described(settings.numerics.strategy, precision),
        "code": dict(settings.code),
        "versions": {"transformers": transformers.__version__},
    }
