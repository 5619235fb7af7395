"""Stands in for training and evaluation where launching is tested: states with one small file, made in no time.

How to behave: `steps` of `pause` seconds each, then `end` as one of trained, diverged, error, full (the disk), die (a
signal), leave (an exit code); with `once`, only at the first attempt. It comes in the order's `detail`, or for the last
segment of a run (or the one `at` another place of its path) from `behaviour.json` in the results folder, by the run's
name.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pyarrow

from harness.launch.work import Order, Result
from harness.launch.worker import Progress
from harness.store import attempts, checkpoints, evaluations, runs, states
from harness.store.atomic import append_json_line, read_json, staging_folder, writing
from harness.store.layout import Folder

TOKENS = 1  # where every stubbed state's checkpoint lies


def perform(order: Order, progress: Progress) -> Result:
    folder = Folder(order.folder)
    detail = behaviour(folder, order)
    line = {"id": f"{order.kind}:{order.state}", "pid": os.getpid()}
    append_json_line(folder.root / "log.jsonl", {**line, "what": "start"})
    print(f"working on {order.state}")
    if order.kind == "evaluate":
        result = _evaluate(folder, order, detail)
    else:
        needs = detail.get("needs")
        if needs is not None and states.verify_state(folder.state(str(needs))) is None:
            raise RuntimeError("the parent is not there")
        result = _train(folder, order, detail, progress)
    append_json_line(folder.root / "log.jsonl", {**line, "what": "end"})
    return result


def behaviour(folder: Folder, order: Order) -> Mapping[str, Any]:
    path = folder.root / "behaviour.json"
    by_run: Mapping[str, Mapping[str, Any]] = read_json(path) if path.exists() else {}
    for name, detail in by_run.items():
        run = runs.read_run(folder, *name.split("/"))
        if run is None or detail.get("kind", "train") != order.kind:
            continue
        if run["path"][detail.get("at", -1)] == order.state:
            return {**order.detail, **detail}
    return order.detail


def _evaluate(folder: Folder, order: Order, detail: Mapping[str, Any]) -> Result:
    time.sleep(float(detail.get("pause", 0)))
    if detail.get("end") == "error":
        raise ValueError("this cannot be scored")
    done = states.read_done(folder.state(order.state))
    for task in detail.get("tasks", ()):
        assert done is not None and done.weights is not None
        metric = {"value": 2.0, "stderr": 0.1, "n": 1, "higher_is_better": False}
        results: dict[str, Any] = {name: task[name] for name in ("task", "kind", "key")}
        results |= {"weights": done.weights, "metrics": {"bits_per_byte": metric}, "headline": "bits_per_byte"}
        results |= {"settings": {}, "versions": {}, "task_hash": "0" * 64, "max_length": 64, "trained_length": 64}
        results |= {"seconds": 0.0, "truncated": 0, "items": 1}
        samples = pyarrow.table({"doc_id": [0], "nll": [1.0], "bytes": [1], "tokens": [1], "doc_hash": ["0"]})
        if task["kind"] == "continuations":
            results |= {"metrics": {}, "headline": None}
            samples = pyarrow.table({name: ["text"] for name in ("source", "prompt", "reference", "continuation")})
        evaluations.write(folder, done.weights, task["key"], results, samples)
    return Result("evaluated")


def _train(folder: Folder, order: Order, detail: Mapping[str, Any], progress: Progress) -> Result:
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    state = folder.state(order.state)
    numerics = {name: order.settings.get(name) for name in ("threads", "micro_batch")}
    env = {"threads": os.environ.get("OMP_NUM_THREADS"), "numerics": numerics, "code": order.settings.get("code")}
    attempt = attempts.begin(state, env)
    before = signal.signal(signal.SIGTERM, ask)
    try:
        steps = int(detail.get("steps", 1))
        for step in range(steps):
            time.sleep(float(detail.get("pause", 0)))
            progress({"segment": order.state, "tokens": step + 1, "tokens_from": 0, "tokens_to": steps})
            if asked:
                attempt.event("stopped", signal=asked[0], tokens=step + 1)
                attempt.finish("stopped")
                return Result("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    return _end(folder, order, detail, attempt)


def _end(folder: Folder, order: Order, detail: Mapping[str, Any], attempt: attempts.Attempt) -> Result:
    state = folder.state(order.state)
    end = str(detail.get("end", "trained"))
    if detail.get("once") and len(state.attempt_numbers()) > 1:
        end = "trained"
    if end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "leave":
        sys.stderr.write("cannot go on\n")
        sys.stderr.flush()
        os._exit(3)
    if end == "error":
        raise ValueError("a number that cannot be")
    if end == "full":
        with writing(state.checkpoint(TOKENS), 10**6):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if end == "diverged":
        states.write_done(state, "diverged", TOKENS, 1, None, None, {})
        attempt.finish("diverged")
        return Result("diverged")
    staged = staging_folder(state.checkpoint(TOKENS))
    (staged / "model").mkdir()
    (staged / "model" / "model.safetensors").write_text(order.state)
    marker = checkpoints.seal(staged, state.checkpoint(TOKENS), order.state, TOKENS, 1)
    states.write_done(state, "trained", TOKENS, 1, checkpoints.weights_hash(marker.files), TOKENS, {})
    attempt.finish("trained")
    return Result("prepared" if order.kind == "base" else "trained")
