"""Stands in for training and evaluation where executors are tested: states with one small file, made in no time.

The order's `detail` says how to behave: `steps` of `pause` seconds each, then `end` as one of trained, diverged, error,
die (a signal), leave (an exit code).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from harness.launch.work import Order, Result
from harness.launch.worker import Progress
from harness.store import attempts, checkpoints, states
from harness.store.atomic import append_json_line, staging_folder
from harness.store.layout import Folder


def perform(order: Order, progress: Progress) -> Result:
    state = Folder(order.folder).state(order.state)
    log = Folder(order.folder).root / "log.jsonl"
    line = {"id": f"{order.kind}:{order.state}", "pid": os.getpid()}
    append_json_line(log, {**line, "what": "start"})
    print(f"working on {order.state}")
    if order.kind == "evaluate":
        time.sleep(float(order.detail.get("pause", 0)))
        append_json_line(log, {**line, "what": "end"})
        return Result("evaluated")
    needs = order.detail.get("needs")
    if needs is not None and states.verify_state(Folder(order.folder).state(str(needs))) is None:
        raise RuntimeError("the parent is not there")
    result = _train(state.id, order, progress)
    append_json_line(log, {**line, "what": "end"})
    return result


def _train(name: str, order: Order, progress: Progress) -> Result:
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    state = Folder(order.folder).state(name)
    attempt = attempts.begin(state, {"threads": os.environ.get("OMP_NUM_THREADS")})
    before = signal.signal(signal.SIGTERM, ask)
    try:
        steps = int(order.detail.get("steps", 1))
        for step in range(steps):
            time.sleep(float(order.detail.get("pause", 0)))
            progress({"segment": name, "tokens": step + 1, "tokens_from": 0, "tokens_to": steps})
            if asked:
                attempt.event("stopped", signal=asked[0], tokens=step + 1)
                attempt.finish("stopped")
                return Result("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    return _end(state.id, order, attempt)


def _end(name: str, order: Order, attempt: attempts.Attempt) -> Result:
    state = Folder(order.folder).state(name)
    end = str(order.detail.get("end", "trained"))
    if order.detail.get("once") and len(state.attempt_numbers()) > 1:
        end = "trained"
    if end == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "leave":
        sys.stderr.write("cannot go on\n")
        sys.stderr.flush()
        os._exit(3)
    if end == "error":
        raise ValueError("a number that cannot be")
    if end == "diverged":
        states.write_done(state, "diverged", 1, 1, None, None, {})
        attempt.finish("diverged")
        return Result("diverged")
    staged = staging_folder(state.checkpoint(1))
    (staged / "model").mkdir()
    (staged / "model" / "model.safetensors").write_text(name)
    marker = checkpoints.seal(staged, state.checkpoint(1), name, 1, 1)
    states.write_done(state, "trained", 1, 1, checkpoints.weights_hash(marker.files), 1, {})
    attempt.finish("trained")
    return Result("prepared" if order.kind == "base" else "trained")
