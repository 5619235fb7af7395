"""What a worker does with an order: the only place where launching meets training and evaluation."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.launch.work import Order, Result
from harness.launch.worker import Progress
from harness.store.layout import Folder

if TYPE_CHECKING:
    from harness.train.numerics import Numerics


def perform(order: Order, progress: Progress) -> Result:
    """Prepare a base, train or merge a segment, or evaluate a state, as the order says.

    A segment is trained with the ranks of `ranks.current()`, each of which is called with the same order.
    """
    folder = Folder(order.folder)
    if order.kind == "base":
        return _base(folder, order)
    if order.kind == "train":
        return _train(folder, order, progress)
    if order.kind == "merge":
        return _merge(folder, order)
    return _evaluate(folder, order, progress)


def _base(folder: Folder, order: Order) -> Result:
    from harness.train.base import prepare_base

    _numerics(order)
    prepare_base(folder, order.state)
    return Result("prepared")


def _train(folder: Folder, order: Order, progress: Progress) -> Result:
    from harness.launch import failures
    from harness.train import ranks
    from harness.train.segment import TrainSettings, train_segment

    settings = TrainSettings(
        numerics=_numerics(order),
        checkpoint_every=order.settings["checkpoint_every"],
        keep=order.settings["keep"],
        strategy=order.settings.get("strategy", "auto"),  # a submission of an earlier version has none
        code=order.settings["code"],
    )
    outcome = train_segment(folder, order.state, settings, progress, order.detail["start"], ranks.current())
    if outcome.kind == "fenced":
        return Result("failed", failures.FENCED)
    return Result(outcome.kind)


def _merge(folder: Folder, order: Order) -> Result:
    from harness.launch import failures
    from harness.train.merge import merge_state

    made_with = {name: fact for name, fact in _numerics(order).record().items() if name in MERGE_NUMERICS}
    environment = {"numerics": made_with, "code": dict(order.settings["code"])}
    if merge_state(folder, order.state, environment) == "fenced":
        return Result("failed", failures.FENCED)
    return Result("merged")


def _evaluate(folder: Folder, order: Order, progress: Progress) -> Result:
    from harness.evals import EvalSettings, EvalTask, evaluate_state

    _numerics(order)
    tasks = [EvalTask.from_json(task) for task in order.detail["tasks"]]
    evaluate_state(folder, order.state, tasks, EvalSettings(**order.settings["evaluation"]), progress)
    return Result("evaluated")


MERGE_NUMERICS = ("device", "threads", "torch")  # a mean runs no model, so it has no kernels and no batch
NUMERICS = ("device", "threads", "micro_batch", "kernels", "compile", "activation_checkpointing")


def _numerics(order: Order) -> Numerics:
    return _fixed(json.dumps({name: order.settings[name] for name in NUMERICS if name in order.settings}))


@lru_cache(maxsize=1)
def _fixed(wanted: str) -> Numerics:
    """This process's numerics, set once: a worker serves one class."""
    from harness.train.numerics import Numerics, set_threads

    numerics = Numerics.resolve(**json.loads(wanted))
    set_threads(numerics)
    return numerics
