"""Executors do the work of a queue. Every one keeps the same contract, tested by one suite:

* an item starts only when the state that it needs is there; a failure takes its descendants and nothing else;
* `run` returns when nothing can start any more, or within seconds of a stop signal, with every running item told to
  checkpoint; an item that was cut short has the outcome `stopped` and can be done by the next run;
* a state at which a process of another run is at work is not begun twice: it is waited for, until that process is
  dead, or has given no sign of life for the lease (see `store.processes`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from harness.launch.queue import Queue
from harness.launch.stop import Stop
from harness.launch.streams import adopt
from harness.launch.work import Failure, Order, Result, Work
from harness.launch.worker import Perform, attempt
from harness.store import attempts, states
from harness.store.atomic import WriteFailed
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.processes import Observer

POLL_SECONDS = 0.5


class Listener(Protocol):
    """Whoever shows what is going on."""

    def started(self, item: Work) -> None: ...

    def progress(self, item: Work, fields: Mapping[str, Any]) -> None: ...

    def settled(self, item: Work, result: Result) -> None: ...

    def waiting(self, item: Work, elsewhere: Mapping[str, Any]) -> None: ...

    def retrying(self, item: Work, failure: Failure, time: int, of: int) -> None: ...


@dataclass(frozen=True)
class Job:
    """All that an executor is given: the results folder, the work, the settings that every order carries."""

    folder: Folder
    queue: Queue
    settings: Mapping[str, Any]

    def order(self, item: Work) -> Order:
        return Order(str(self.folder.root), item.kind, item.state, self.settings, item.detail)


class Executor(Protocol):
    """Does a job's work; see the module for the contract."""

    def run(self, job: Job, listener: Listener, stop: Stop) -> None: ...


class Elsewhere:
    """Attempts of processes that are not ours: asks once an item whether one is alive, and says so once."""

    def __init__(self, job: Job, listener: Listener, ours: Callable[[], set[int]]) -> None:
        self._job = job
        self._listener = listener
        self._ours = ours
        self._said: set[str] = set()
        self._observer = Observer()

    def busy(self, item: Work) -> bool:
        """Whether another living process is at work on what `item` would do."""
        if item.kind == "evaluate":
            return False
        env = attempts.living_attempt(self._job.folder.state(item.state), self._observer)
        if env is None or env["pid"] in self._ours():
            return False
        if item.id not in self._said:
            self._said.add(item.id)
            self._listener.waiting(item, env)
        return True

    def settled_elsewhere(self, item: Work) -> Result | None:
        """How an item that was waited for has ended; None when it must still be done here."""
        if item.id not in self._said:
            return None
        try:
            done = states.verify_state(self._job.folder.state(item.state))
        except Damaged:
            return None
        return None if done is None else Result(done.outcome)


class Interrupted(BaseException):
    """Raised inside the work of this process when it is told to stop and cannot checkpoint."""


class DebugExecutor:
    """One item after the other in this process: a debugger and prints work. Signals reach the trainer itself."""

    def __init__(self, perform: Perform) -> None:
        self._perform = perform

    def run(self, job: Job, listener: Listener, stop: Stop) -> None:
        elsewhere = Elsewhere(job, listener, set)
        last: Work | None = None
        while not job.queue.finished and stop.signal is None:
            item = job.queue.take(last, elsewhere.busy)
            if item is None:
                time.sleep(POLL_SECONDS)
                continue
            listener.started(item)
            result = elsewhere.settled_elsewhere(item) or self._do(job, item, listener, stop)
            if result.outcome == "stopped" and stop.signal is None:
                stop.note(signal.SIGTERM)  # it reached the trainer, whose handler stood in front of ours
            close_attempt(job.folder, item, result)
            job.queue.settle(item, result)
            listener.settled(item, result)
            last = item

    def _do(self, job: Job, item: Work, listener: Listener, stop: Stop) -> Result:
        def pass_on(number: int) -> None:
            if item.kind == "train" and not stop.handles(signal.SIGTERM):
                signal.raise_signal(signal.SIGTERM)  # the trainer's own handler: checkpoint and leave
            else:
                raise Interrupted

        stop.on_signal = pass_on
        try:
            return attempt(self._perform, job.order(item), lambda fields: listener.progress(item, fields))
        except Interrupted:
            return Result("stopped")
        finally:
            stop.on_signal = None


def close_attempt(folder: Folder, item: Work, result: Result, pid: int | None = None) -> None:
    """Record why an attempt failed where its own process could not: it was killed, or left by an exception.

    pid: the process that made the attempt, None for this one. Its streams are given to the attempt, too. Where that
    cannot be written (a full disk), it is left undone: what is running goes on.
    """
    if item.kind in ("train", "merge"):
        with contextlib.suppress(OSError, WriteFailed):
            _close_attempt(folder, item, result, pid)


def _close_attempt(folder: Folder, item: Work, result: Result, pid: int | None) -> None:
    owner = os.getpid() if pid is None else pid
    state = folder.state(item.state)
    number = adopt(state, owner, item.kind)
    if number is None or result.failure is None:
        return
    known = attempts.read_exit(state, number)
    if known is not None and (known["outcome"] != "failed" or "failure" in known):
        return
    attempts.Attempt(state, number).finish("failed", failure=result.failure.kind, error=result.failure.error)
