"""Ranks: processes that train one segment together, each on its part of every batch's rows.

Every rank reads the same data and takes its rows of each batch, and holds the whole model or a shard of it (`parallel`,
`sharding`). Gradients and figures are summed over the ranks, so that all make the same update.

What the ranks tell one another crosses a control group on the CPU (gloo): an exchange of a few integers in which all
take part, always in the same order. A rank that fails says so in the next exchange, and every rank raises; the group is
whole and may do other work. A rank that dies closes its connections. Those who waited for it drop theirs, so that the
next ones learn of it, too: RankLost, on every rank that is left, and the group is of no more use. `Lines` name it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.study.errors import UserError
from harness.train.lines import Lines

# The longest that a sum may take, and that ranks wait for one another at the start.
PATIENCE = timedelta(minutes=30)
# The longest that ranks wait between two exchanges: for an update, or for rank 0 while it reads or writes a checkpoint.
PATIENCE_FOR_WORK = timedelta(hours=2)
# The longest that the others wait for an order, while rank 0 does what it does alone.
PATIENCE_FOR_ORDERS = timedelta(days=30)
POLL_SECONDS = 0.05
BUCKET_ELEMENTS = 1 << 23  # 32 MiB in fp32: gradients are summed in pieces of about this size


class RankFailed(Exception):
    """Another rank has failed and said so. kind: the name of its exception's class."""

    def __init__(self, rank: int, world: int, kind: str, reason: str) -> None:
        super().__init__(f"rank {rank} of {world} failed: {kind}: {reason}")
        self.rank = rank
        self.kind = kind


class RankLost(Exception):
    """A rank has died or cannot be reached any more; those that are left cannot go on together."""


class Ranks:
    """This process, `rank` of `world`. With world 1 nothing here does anything, and no process group exists."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._on_gpus = False
        self._groups: dict[str, Any] = {}  # nothing else may hold on to one: see `_run`
        self._known: BaseException | None = None  # a failure that every rank has been told
        self._lines: Lines | None = None
        self._lost: str | None = None  # who is gone, once that is known

    @classmethod
    def alone(cls) -> Ranks:
        """One process that trains by itself."""
        return cls()

    @classmethod
    def join(cls, rank: int, world: int, local_rank: int, rendezvous: str | Path, device: str = "auto") -> Ranks:
        """Become one of `world` ranks; returns when all are there.

        local_rank: the number of this process on its machine, which chooses its GPU. rendezvous: `tcp://HOST:PORT` of
        rank 0's machine, or a file (path or `file://`) on a file system that all share and that no earlier group has
        used. device: cpu, cuda or auto, as an order says. Raises UserError for a GPU that is not there, RankLost when
        the ranks do not find one another.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is none of {world}")
        ranks = cls(rank, world)
        if world == 1:
            return ranks
        cuda = device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(_gpu(local_rank, torch.cuda.device_count()))
        meet = Path(rendezvous).absolute().as_uri() if "://" not in str(rendezvous) else str(rendezvous)
        ranks._on_gpus = cuda
        failed = ranks._connect(meet, "cpu:gloo,cuda:nccl" if cuda else "gloo")
        if failed is not None:
            ranks.leave()
            raise RankLost(f"rank {rank} of {world} did not find the others at {meet}: {failed}")
        ranks._lines = Lines(rank, world, lambda value: ranks._spread(value, 0))
        return ranks

    def _connect(self, meet: str, backend: str) -> str | None:
        try:
            dist.init_process_group(backend, meet, PATIENCE, world_size=self.world, rank=self.rank)
            self._groups["sums"] = dist.group.WORLD
            self._groups["control"] = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_WORK)
            self._groups["orders"] = dist.new_group(backend="gloo", timeout=PATIENCE_FOR_ORDERS)
        except (RuntimeError, OSError) as error:
            return _first_line(error)
        return None

    def leave(self) -> None:
        """Give up this process's place; the others need it no more, or are to learn that it is gone."""
        self._drop_groups()
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _drop_groups(self) -> None:
        self._groups.clear()
        if self.world > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _fail(self, error: BaseException) -> None:
        """Leave where the others wait for this rank and nothing can be told to them in an exchange."""
        if self._lines is not None:
            self._lines.failing(error)
            self._lost = f"rank {self.rank} of {self.world} has failed itself"
        self._abandon()

    def _abandon(self) -> None:
        """Drop the connections with the others, after a failure: they learn of it. Then find out who is gone."""
        if self._on_gpus and dist.is_initialized():
            # A kernel that waits for a lost rank never ends by itself.
            abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
            if abort is not None:
                with contextlib.suppress(RuntimeError, ValueError):
                    abort()
        self._drop_groups()
        if self._lines is not None and self._lost is None:
            self._lost = self._lines.word()
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def _loss(self, found: str) -> RankLost:
        what = found if self._lost is None else f"{self._lost} ({found})"
        return RankLost(f"a rank was lost, as rank {self.rank} of {self.world} found: {what}")

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """A block inside which this rank waits for the others, and they for it, outside of exchanges.

        Begins with an exchange, so that all enter or none. Raises RankLost when one of them is not there any more. A
        rank in which it raises anything else leaves: the others get RankLost, with its reason.
        """
        if self.world == 1:
            yield
            return
        self.agree()
        lost: str | None = None
        try:
            yield
        except (RankLost, RankFailed):
            raise
        except BaseException as error:
            if not _of_a_connection(error):
                self._fail(error)
                raise
            lost = _first_line(error)
        if lost is not None:
            self._abandon()
            raise self._loss(lost)

    def sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all ranks, in place, where it is."""
        if self.world > 1:
            self._run("sums", lambda group: dist.all_reduce(tensor, group=group))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """The rows of a batch of `rows` that this rank takes: as many as every other rank."""
        each = rows // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def check_rows(self, batch_tokens: int, length: int) -> None:
        """Raise UserError unless batches of `batch_tokens` in rows of `length` tokens have an equal part for each."""
        rows = batch_tokens // length
        if rows % self.world:
            fitting = [n for n in range(1, rows + 1) if rows % n == 0]
            raise UserError(
                f"a batch of {rows} rows (`batch_tokens: {batch_tokens}` in rows of `context.length: {length}`) cannot "
                f"be divided among {self.world} processes that train together (`launch.nodes` times `launch.gpus`); "
                f"use one of {', '.join(map(str, fitting[-8:]))}, or another batch."
            )

    def agree(self, value: int = 0) -> int:
        """The greatest `value` of all ranks. Raises what `together` says where one of them failed."""
        return value if self.world == 1 else self._exchange(None, value)[0]

    def check_equal(self, value: int, what: str) -> None:
        """Raise RuntimeError on every rank unless all have the same `value`, 0 <= value < 2^62."""
        if self.world > 1:
            greatest, least = self._exchange(None, value, -value)
            if greatest != -least:
                raise RuntimeError(f"{what} not the same on all {self.world} ranks; equal machines give equal bits")

    def led(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, where alone it is called, on every rank; it crosses as JSON."""
        value = work() if self.leads else None
        if self.world > 1:
            self.agree()
            value = self._spread(value, 0)
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every rank enters, and that succeeds on all or on none.

        A rank in which it raises tells the others; they raise RankFailed, or the same UserError, in their next
        exchange or where the block ends. Blocks may stand in one another. Raises RankLost when a rank dies.
        """
        if self.world == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            if error is not self._known and not isinstance(error, RankLost):
                self._tell(error)
            raise
        self.agree()

    def hand_out(self, order: Any = None) -> Any:
        """Rank 0 gives an order, as JSON, to the others, who wait for it here as long as it takes; None: no more come.

        Signals are delivered while a rank waits. Raises RankLost.
        """
        return order if self.world == 1 else self._spread(order, 0, "orders")

    def sum_gradients(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> None:
        """Sum `figures` and the gradients of `parameters` over all ranks, in place; all float32 on one device.

        A parameter that has a gradient on some ranks only counts as 0 on the others; one that has none keeps none.
        The order of a sum depends on the world size alone, and every rank gets the same bits.
        """
        if self.world == 1:
            return
        absent = any(parameter.grad is None for parameter in parameters)
        some_absent = self.agree(int(absent))
        try:
            if some_absent:
                self._fill_absent(parameters)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            self._sum([figures, *gradients])
        except RankLost:
            raise
        except BaseException as error:
            self._fail(error)  # the others are inside a sum
            raise

    def _fill_absent(self, parameters: Sequence[nn.Parameter]) -> None:
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int64)
        self._run("control", lambda group: dist.all_reduce(there, dist.ReduceOp.MAX, group=group))
        for parameter, on_some in zip(parameters, there.tolist(), strict=True):
            if on_some and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._run("sums", lambda group: dist.all_reduce(flat, group=group))  # noqa: B023
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _tell(self, error: BaseException) -> None:
        """Say in the exchange that the others wait in, or come to, that this rank has failed."""
        self._known = error
        with contextlib.suppress(RankLost, RankFailed):
            self._exchange({"kind": type(error).__name__, "reason": str(error)})
        self._known = error

    def _exchange(self, failure: dict[str, str] | None, *values: int) -> list[int]:
        """The greatest of each of up to two values. Raises where a rank came with a failure."""
        failed = 0 if failure is None else self.rank + 1
        told = torch.tensor([failed, *values, *(0 for _ in range(2 - len(values)))], dtype=torch.int64)
        self._run("control", lambda group: dist.all_reduce(told, dist.ReduceOp.MAX, group=group))
        failed, *greatest = (int(value) for value in told.tolist())
        if failed:
            said = self._spread(failure, failed - 1)
            is_mistake = said["kind"] == UserError.__name__
            self._known = UserError(said["reason"]) if is_mistake else RankFailed(failed - 1, self.world, **said)
            raise self._known
        return greatest

    def _spread(self, value: Any, source: int, name: str = "control") -> Any:
        """What rank `source` gives as `value`, on every rank."""
        text = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor([len(text)], dtype=torch.int64)
        self._run(name, lambda group: _broadcast(size, source, group))
        content = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == source:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._run(name, lambda group: _broadcast(content, source, group))
        return value if self.rank == source else json.loads(bytes(content.tolist()))

    def _run(self, name: str, call: Callable[[Any], Any]) -> None:
        """Do in the group `name` what needs the others. Raises RankLost when one of them is not there any more."""
        if name not in self._groups:
            raise self._loss("it is not connected with the others any more")
        lost = None
        try:
            call(self._groups[name])
        except RuntimeError as error:
            lost = _first_line(error)
        if lost is not None:  # out of the handler, whose exception holds the group: its connections are to close now
            self._abandon()
            raise self._loss(lost)


ALONE = Ranks.alone()
_current = ALONE


def current() -> Ranks:
    """The ranks that this process trains with."""
    return _current


@contextmanager
def using(ranks: Ranks) -> Iterator[None]:
    """Have `current` say `ranks` inside the block."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


def _broadcast(tensor: Tensor, source: int, group: Any) -> None:
    """Also when this takes long: Python delivers signals between two looks."""
    work = dist.broadcast(tensor, source, group=group, async_op=True)
    assert work is not None
    pause = 1e-5
    while not work.is_completed():
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    work.wait()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours up to BUCKET_ELEMENTS together; a larger tensor is a bucket of its own."""
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if bucket and elements + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket


def _gpu(local_rank: int, there: int) -> int:
    """The GPU of a process; one that sees a single GPU has been given it by Slurm. Raises UserError."""
    if there == 1:
        return 0
    if local_rank >= there:
        raise UserError(f"this machine shows {there} GPUs to process {local_rank}; each process needs one of its own.")
    return local_rank


def _of_a_connection(error: BaseException) -> bool:
    """Whether an error of a collective says that another rank is not there: gloo and NCCL have no class for it."""
    if isinstance(error, dist.DistError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "nccl", "connection closed"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
