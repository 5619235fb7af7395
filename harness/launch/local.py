"""The `local` executor: worker processes on this machine that import torch once and are fed through pipes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from harness.launch import code, devices, failures
from harness.launch.executor import POLL_SECONDS, Elsewhere, Job, Listener, close_attempt
from harness.launch.stop import Stop
from harness.launch.streams import pending
from harness.launch.work import Result, Work, result_from_json
from harness.launch.worker import PERFORM

GRACE_SECONDS = 60.0  # to write a checkpoint after SIGTERM, before SIGKILL
RETRIES = 2  # of an item whose worker was ended by a signal that nobody here sent: it goes on from its checkpoint


class Worker:
    """A worker process and what it is doing. gpu: the only one that it sees; None: as this process does."""

    def __init__(self, perform: str, threads: int, gpu: str | None = None) -> None:
        self.gpu = gpu
        self.item: Work | None = None
        self.last: Work | None = None
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        command = code.command("harness.launch.worker", "--parent", str(os.getpid()), "--perform", perform)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(threads, gpu),
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._unread = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def give(self, item: Work, order: Mapping[str, Any]) -> None:
        """Send an order. A worker that has died in the meantime is noticed by its end of file."""
        self.item = item
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(order) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Answers that have come, and whether the worker is gone."""
        assert self.process.stdout is not None
        gone = False
        while True:
            try:
                data = os.read(self.process.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                break
            if not data:
                gone = True
                break
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines], gone

    def last_words(self) -> str:
        """The end of what the worker itself, outside its work, wrote to stderr."""
        self._stderr.seek(0, 2)
        self._stderr.seek(max(0, self._stderr.tell() - 4096))
        return self._stderr.read().decode(errors="replace")

    def close(self, seconds: float) -> int:
        """Let the worker leave (its stdin ends), by force after `seconds`. Returns its exit code."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            left = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            left = self.process.wait()
        self.process.stdout.close()
        self._stderr.close()
        return left


def environment(threads: int, gpu: str | None = None) -> dict[str, str]:
    """A worker's environment: threads are fixed before any library starts its pool, and the GPU before CUDA looks."""
    fixed = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    fixed |= {} if gpu is None else {devices.VISIBLE: gpu}
    return {**code.environment(), **fixed, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


class LocalExecutor:
    """At most `jobs` workers of `threads` threads each; a worker is started when there is work for it."""

    def __init__(self, jobs: int, threads: int, perform: str = PERFORM) -> None:
        self._jobs = jobs
        self._threads = threads
        self._perform = perform

    def run(self, job: Job, listener: Listener, stop: Stop) -> None:
        gpus = devices.to_share(str(job.settings.get("device", "auto"))) if self._jobs > 1 else []
        pool = _Pool(job, listener, self._perform, self._threads, gpus)
        try:
            while not job.queue.finished and stop.signal is None:
                pool.assign(self._jobs)
                pool.listen(POLL_SECONDS)
            if stop.signal is not None:
                pool.stop(stop)
        finally:
            pool.close()


class _Pool:
    """The workers of one run, and the pipes from them. gpus: that they share, if any."""

    def __init__(self, job: Job, listener: Listener, perform: str, threads: int, gpus: Sequence[str]) -> None:
        self._gpus = gpus
        self._job = job
        self._listener = listener
        self._perform = perform
        self._threads = threads
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._elsewhere = Elsewhere(job, listener, lambda: {worker.pid for worker in self._workers})
        self._stopping = False
        self._deaths: dict[str, int] = {}

    def assign(self, jobs: int) -> None:
        """Give work to idle workers, the one that has just made the parent first; start workers up to `jobs`."""
        idle = [worker for worker in self._workers if worker.item is None]
        while idle or len(self._workers) < jobs:
            worker = _best_of(idle, self._job.queue.ready)
            item = self._job.queue.take(worker.last if worker else None, self._elsewhere.busy)
            if item is None:
                return
            self._listener.started(item)
            elsewhere = self._elsewhere.settled_elsewhere(item)
            if elsewhere is not None:
                self._settle(item, elsewhere)
                continue
            if worker is None:
                worker = self._start()
            else:
                idle.remove(worker)
            worker.give(item, self._job.order(item).to_json())

    def listen(self, seconds: float) -> None:
        """Take in what the workers say for at most `seconds`, until the first of them says something."""
        for key, _ in self._selector.select(seconds):
            worker: Worker = key.data
            answers, gone = worker.read()
            for answer in answers:
                self._take_in(worker, answer)
            if gone:
                self._bury(worker)

    def stop(self, stop: Stop) -> None:
        """Ask every busy worker to checkpoint and leave, and wait for it; a second signal waits no longer."""
        self._stopping = True
        for worker in self._busy():
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._busy() and time.monotonic() < deadline and not stop.again:
            self.listen(POLL_SECONDS)
        for worker in self._busy():
            worker.process.kill()
            self._bury(worker)

    def close(self) -> None:
        """Let all workers leave; whoever is still busy (this process is failing) is killed."""
        for worker in self._workers:
            if worker.item is not None:
                worker.process.kill()
            worker.close(10.0)
        self._workers.clear()
        self._selector.close()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.item is not None]

    def _start(self) -> Worker:
        gpu = devices.least_used(self._gpus, [worker.gpu for worker in self._workers])
        worker = Worker(self._perform, self._threads, gpu)
        self._workers.append(worker)
        assert worker.process.stdout is not None
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _take_in(self, worker: Worker, answer: Mapping[str, Any]) -> None:
        if worker.item is None:
            return
        if "progress" in answer:
            self._listener.progress(worker.item, answer["progress"])
            return
        item, worker.item, worker.last = worker.item, None, worker.item
        self._finish(item, self._judge(result_from_json(answer["result"])), worker.pid)

    def _bury(self, worker: Worker) -> None:
        """A worker is gone: what it was doing has failed (or stopped, when it was told to)."""
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        self._workers.remove(worker)
        returncode = worker.process.wait()
        words = worker.last_words()
        worker.close(1.0)
        item, worker.item = worker.item, None
        if item is None:
            return
        if self._stopping:
            self._finish(item, Result("stopped"), worker.pid)
            return
        stderr = pending(self._job.folder.state(item.state), item.kind, "stderr")
        if returncode >= 0 and not words and stderr.exists():
            words = stderr.read_text(errors="replace")[-4096:]
        failure = failures.of_death(returncode, words)
        died = self._deaths[item.id] = self._deaths.get(item.id, 0) + (failure.kind == "killed")
        if failure.kind == "killed" and died <= RETRIES:
            close_attempt(self._job.folder, item, Result("failed", failure), worker.pid)
            self._job.queue.again(item)
            self._listener.retrying(item, failure, died, RETRIES)
            return
        self._finish(item, Result("failed", failure), worker.pid)

    def _judge(self, result: Result) -> Result:
        """Work that stopped although nobody here asked for it has failed: it would otherwise be done by no one."""
        if result.outcome == "stopped" and not self._stopping:
            return Result("failed", failures.STOPPED)
        return result

    def _finish(self, item: Work, result: Result, pid: int) -> None:
        close_attempt(self._job.folder, item, result, pid)
        self._settle(item, result)

    def _settle(self, item: Work, result: Result) -> None:
        self._job.queue.settle(item, result)
        self._listener.settled(item, result)


def _best_of(idle: list[Worker], ready: list[Work]) -> Worker | None:
    """The idle worker that has just made what the next item needs, else any, None when there is none."""
    for item in ready[:1]:
        for worker in idle:
            if worker.last is not None and worker.last.makes in item.awaits:
                return worker
    return idle[0] if idle else None
