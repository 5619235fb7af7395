"""A worker process: reads orders from stdin, one JSON line each, and answers on stdout; torch is imported once.

    controller → worker   {"folder", "kind", "state", "settings", "detail"}      an `Order`
    worker → controller   {"progress": {...}}                                    any number
                          {"result": {"outcome", "failure": null | {...}}}       one per order

What the work itself prints goes to files in the state's folder (see `streams`). The worker leaves when its stdin is
closed, and is told to stop by the kernel when the controller dies, however that dies.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from harness.launch import failures
from harness.launch.streams import captured
from harness.launch.work import Order, Result, result_json
from harness.store.atomic import WriteFailed
from harness.store.layout import Folder

Progress = Callable[[Mapping[str, Any]], None]
Perform = Callable[[Order, Progress], Result]

PERFORM = "harness.launch.perform:perform"
_PR_SET_PDEATHSIG = 1


def load_perform(name: str) -> Perform:
    """The work function called `module:function`."""
    module, _, function = name.partition(":")
    loaded: Perform = getattr(importlib.import_module(module), function)
    return loaded


def attempt(perform: Perform, order: Order, progress: Progress) -> Result:
    """Do an order; whatever goes wrong becomes a failed result, its traceback on stderr."""
    try:
        return perform(order, progress)
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may be full
            traceback.print_exc()
            sys.stderr.flush()
        return Result("failed", failures.of_exception(error))


def serve(orders: TextIO, answers: TextIO, perform: Perform) -> None:
    """Do orders until there are no more."""

    def answer(value: Mapping[str, Any]) -> None:
        try:
            answers.write(json.dumps(value) + "\n")
            answers.flush()
        except BrokenPipeError:
            # The controller is gone. The work that is under way must still get to its checkpoint.
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())

    for line in orders:
        order = Order.from_json(json.loads(line))
        try:
            with captured(Folder(order.folder).state(order.state), order.kind):
                result = attempt(perform, order, lambda fields: answer({"progress": dict(fields)}))
        except WriteFailed as error:  # the files for what the work prints
            result = Result("failed", failures.of_exception(error))
        answer({"result": result_json(result)})


def die_with(parent: int) -> None:
    """Ask the kernel to send SIGTERM when the controller dies: work in training then checkpoints and leaves."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the controller is gone")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="harness.launch.worker")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--perform", default=PERFORM)
    options = parser.parse_args(arguments)
    # Ctrl-C in a terminal, and its closing, reach the whole process group; only the controller decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    die_with(options.parent)
    # The protocol keeps the real stdout for itself: a stray print of a library must not end up in it.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, load_perform(options.perform))


if __name__ == "__main__":
    main()
