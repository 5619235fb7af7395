"""Checkpoints of a sharded model: written by all ranks in the background, or put together when a segment ends.

Inside a segment each rank copies its shards to host memory (12 bytes a parameter / ranks with AdamW, 16 with an
average) and writes them in a thread while training goes on. In a thread of rank 0 follow, when all files are durable,
checksums, marker and name. Nothing in a thread waits for another rank: how far all are, the ranks tell one another
between updates. One checkpoint is in flight at most; what kills a run meanwhile costs that one.

At the end of a segment rank 0 puts the model together (8 bytes a parameter of host memory: the weights, and those that
it reads back), and streams the optimizer's tensors to the file one by one. What it wrote is loaded again and compared
with what was gathered before it is marked.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.store import checkpoints
from harness.store.atomic import staging_folder, write_json, writing
from harness.store.attempts import Attempt
from harness.store.checkpoints import SHARDS, CheckpointMarker
from harness.store.layout import StateFolder
from harness.train.checkpoint import AVERAGE, CURSOR, OPTIMIZER, save_spikes
from harness.train.loop import Loop
from harness.train.model import load_model, save_model, save_settings
from harness.train.optimizer import optimizer_tensors
from harness.train.ranks import RankFailed, RankLost, Ranks
from harness.train.shard_files import Entry, is_complete, rank_file, save_async, write_tensors
from harness.train.sharding import Shards
from harness.train.start import VISIBLE_SECONDS

ABANDON_SECONDS = 60.0


@dataclass
class _Flight:
    """A checkpoint that is being written. marked: the second part, in which rank 0 alone is at work."""

    staged: Path
    final: Path
    fingerprint: str
    tokens: int
    step: int
    work: Future[Any]
    attempt: Attempt
    marked: bool = False


class ShardSaves:
    """This rank's part of writing checkpoints. Every rank calls its methods at the same points, with equal arguments.

    attempt: of rank 0, None on the others. written: told of each checkpoint that is there, on rank 0. Methods raise
    Fenced when a newer attempt has begun, WriteFailed, and what `Ranks` raises.
    """

    def __init__(
        self,
        state: StateFolder,
        ranks: Ranks,
        attempt: Attempt | None = None,
        written: Callable[[CheckpointMarker], None] = lambda marker: None,
    ) -> None:
        self._state = state
        self._ranks = ranks
        self._attempt = attempt
        self._written = written
        self._flight: _Flight | None = None

    def begin(self, loop: Loop, fingerprint: str, tokenizer: Path | None) -> None:
        """Begin to write a checkpoint of where `loop` is, after the one that is in flight. tokenizer: as for
        `write_checkpoint`, on rank 0."""
        self.settle()
        shards = _shards(loop)
        final = self._state.checkpoint(loop.tokens)
        staged, attempt = self._stage(final)
        try:
            if self._attempt is not None:
                assert tokenizer is not None
                with writing(staged):
                    (staged / SHARDS).mkdir()
                    save_settings(loop.model, staged / "model", tokenizer)
                    save_spikes(staged, loop.spikes)
                write_json(staged / CURSOR, loop.feed.cursor().to_json())
            self._ranks.agree()  # the folder is there
            path = rank_file(staged, self._ranks.rank, self._ranks.world)
            work = save_async(path, _own_tensors(loop, shards, self._ranks.leads))
        except BaseException:
            if self._attempt is not None:
                shutil.rmtree(staged, ignore_errors=True)
            raise
        self._flight = _Flight(staged, final, fingerprint, loop.tokens, loop.step, work, attempt)

    def _stage(self, final: Path) -> tuple[Path, Attempt]:
        """A folder to write into, and whose attempt this is: what rank 0 says."""

        def stage() -> list[Any]:
            assert self._attempt is not None
            self._attempt.check_owner()
            return [str(staging_folder(final)), self._attempt.number]

        path, number = self._ranks.led(stage)
        return Path(path), Attempt(self._state, number)

    def poll(self) -> None:
        """See how far the checkpoint in flight is, and bring it on. To be called between updates."""
        flight = self._flight
        if flight is None:
            return
        done = flight.work.done()
        if done and flight.work.exception() is not None:
            flight.attempt.check_owner()  # a newer attempt removes what older ones were writing: that is no failure
            flight.work.result()
        if self._ranks.agree(int(not done)):
            return
        if not flight.marked:
            flight.marked, flight.work = True, self._seal(flight)
            return
        self._flight = None
        marker = flight.work.result()
        if marker is not None:
            self._written(marker)

    def settle(self) -> None:
        """Wait until nothing is in flight."""
        while self._flight is not None:
            wait([self._flight.work])
            self.poll()

    def abandon(self) -> None:
        """After a failure: what is in flight will never be a checkpoint."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        wait([flight.work], ABANDON_SECONDS)
        if self._attempt is not None:
            shutil.rmtree(flight.staged, ignore_errors=True)

    def _seal(self, flight: _Flight) -> Future[Any]:
        """On rank 0, in a thread: checksums, marker, name."""
        if self._attempt is None:
            nothing: Future[Any] = Future()
            nothing.set_result(None)
            return nothing
        executor = ThreadPoolExecutor(1, "checkpoint")
        try:
            return executor.submit(_sealed, flight, self._ranks.world)
        finally:
            executor.shutdown(wait=False)

    def whole(self, loop: Loop, fingerprint: str, tokenizer: Path | None) -> None:
        """Write a checkpoint that is not sharded, as one process would, after the one that is in flight."""
        self.settle()
        shards = _shards(loop)
        final = self._state.checkpoint(loop.tokens)
        staged, _ = self._stage(final)
        try:
            with writing(final, _bytes(loop, shards)), self._ranks.exposed():
                weights = _gathered(loop.model, shards, self._attempt is not None)
                if self._attempt is not None:
                    assert tokenizer is not None
                    save_model(loop.model, staged / "model", tokenizer, weights)
                self._stream(staged / OPTIMIZER, _optimizer(loop, shards), shards)
                if loop.average is not None:
                    self._stream(staged / AVERAGE, loop.average.tensors(), shards)
            if self._attempt is not None:
                _compare(staged / "model", loop.model, weights)
                save_spikes(staged, loop.spikes)
                write_json(staged / CURSOR, loop.feed.cursor().to_json())
                self._attempt.check_owner()
                self._written(checkpoints.seal(staged, final, fingerprint, loop.tokens, loop.step))
        except BaseException as error:
            if self._attempt is not None:
                shutil.rmtree(staged, ignore_errors=True)
                if not isinstance(error, (RankFailed, RankLost)):  # of which the others know
                    self._attempt.check_owner()
            raise

    def _stream(self, path: Path, tensors: dict[str, Tensor], shards: Shards) -> None:
        """Write whole tensors, in whose gathering all ranks take part."""
        entries = [Entry(key, value.dtype, _shape(key, value, shards)) for key, value in tensors.items()]
        values = _wholes(tensors, shards)
        if self._attempt is not None:
            write_tensors(path, entries, values)
        else:
            for _ in values:
                pass


def _sealed(flight: _Flight, world: int) -> CheckpointMarker:
    try:
        deadline = time.monotonic() + VISIBLE_SECONDS
        for rank in range(world):
            path = rank_file(flight.staged, rank, world)
            while not is_complete(path) and time.monotonic() < deadline:
                time.sleep(0.2)
            if not is_complete(path):
                raise RuntimeError(f"{path.name} was written by rank {rank}, and cannot be read on rank 0's machine")
        flight.attempt.check_owner()
        return checkpoints.seal(flight.staged, flight.final, flight.fingerprint, flight.tokens, flight.step)
    except BaseException:
        shutil.rmtree(flight.staged, ignore_errors=True)
        raise


def _shards(loop: Loop) -> Shards:
    assert isinstance(loop.weights, Shards)
    return loop.weights


def _parameter(key: str) -> str:
    """`exp_avg.<parameter>` without what the optimizer calls it."""
    return key.partition(".")[2]


def _optimizer(loop: Loop, shards: Shards) -> dict[str, Tensor]:
    """In an order that does not depend on how the state came about."""
    return dict(sorted(optimizer_tensors(shards.named, loop.optimizer).items()))


def _buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a model saves beside its parameters; equal on all ranks."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def _own_tensors(loop: Loop, shards: Shards, leads: bool) -> dict[str, Tensor]:
    """What this rank writes."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in shards.tensors().items()}
    for key, value in _optimizer(loop, shards).items():
        if value.ndim:
            tensors[f"optimizer.{key}"] = shards.like(_parameter(key), value)
        elif leads:
            tensors[f"optimizer.{key}"] = value
    if loop.average is not None:
        tensors |= {f"average.{name}": shards.like(name, value) for name, value in loop.average.tensors().items()}
    if leads:
        tensors |= {f"model.{name}": value for name, value in _buffers(loop.model).items()}
    return tensors


def _gathered(model: PreTrainedModel, shards: Shards, keep: bool) -> dict[str, Tensor]:
    """The whole state of the model by name in host memory; nothing where not `keep`. Every rank calls it."""
    whole: dict[str, Tensor] = {}
    of: dict[int, str] = {}
    for name, value in shards.tensors().items():
        tensor = value.full_tensor().detach()
        of[id(value)] = name
        if keep:
            whole[name] = tensor.cpu()
    if keep:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            whole[name] = whole[of[id(parameter)]] if id(parameter) in of else parameter.detach().cpu()
        whole |= {name: value.detach().cpu() for name, value in _buffers(model).items()}
    return whole


def _wholes(tensors: dict[str, Tensor], shards: Shards) -> Iterator[Tensor]:
    for key, value in tensors.items():
        name = key if key in shards.tensors() else _parameter(key)
        yield shards.like(name, value).full_tensor() if value.ndim else value


def _shape(key: str, value: Tensor, shards: Shards) -> torch.Size:
    name = key if key in shards.tensors() else _parameter(key)
    return shards.shape(name) if value.ndim else value.shape


def _bytes(loop: Loop, shards: Shards) -> int:
    """Of a checkpoint that is not sharded, about."""
    parameters = sum(shards.shape(name).numel() for name in shards.tensors())
    return 4 * parameters * (3 if loop.average is None else 4)


def _compare(folder: Path, model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Raise RuntimeError unless the model in `folder` loads and has the gathered weights, bit for bit."""
    reloaded = load_model(folder, model.config)
    for name, parameter in reloaded.named_parameters():
        if not torch.equal(parameter.detach(), weights[name]):
            raise RuntimeError(f"{name} in {folder} is not what was gathered from the ranks")
