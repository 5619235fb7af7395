"""From a checkpoint to what training goes on with: a whole one or a sharded one, on one process, or on several of which
each has the whole model or a shard of it, whoever has written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from harness.store.checkpoints import CheckpointMarker
from harness.store.markers import Damaged
from harness.study.errors import UserError
from harness.train.average import WeightAverage
from harness.train.checkpoint import AVERAGE, OPTIMIZER, load_average, load_optimizer
from harness.train.model import build_model, load_model
from harness.train.optimizer import load_optimizer_tensors
from harness.train.shard_files import ShardFiles, WholeFile
from harness.train.sharding import Shards


def restore_model(saved: CheckpointMarker, config: PretrainedConfig) -> PreTrainedModel:
    """The whole model of a checkpoint on the CPU."""
    if not saved.sharded:
        return load_model(saved.model, config)
    model, files = build_model(config, init_seed=0), ShardFiles(saved)
    state = model.state_dict()
    missing = {name for name, _ in model.named_parameters()} - set(files.names("model."))
    if missing:
        raise Damaged(f"{saved.path} lacks {', '.join(sorted(missing)[:3])}")
    for name in files.names("model."):
        state[name].copy_(files.read(f"model.{name}"))
    return model


def restore_optimizer(
    saved: CheckpointMarker, model: PreTrainedModel, optimizer: torch.optim.Optimizer, shards: Shards | None
) -> None:
    """Put back the optimizer's state; a checkpoint without one (a base that starts cold) leaves it empty."""
    if not saved.sharded:
        if shards is None:
            load_optimizer(saved.path, model, optimizer)
        elif (saved.path / OPTIMIZER).exists():
            file = WholeFile(saved.path / OPTIMIZER)
            tensors = {key: file.read(key, _rows(shards, key.partition(".")[2])) for key in file.names()}
            load_optimizer_tensors(shards, optimizer, tensors)
        return
    files = ShardFiles(saved)
    keys = files.names("optimizer.")
    rows = {key: None if shards is None else _rows(shards, key.partition(".")[2]) for key in keys}
    found = {key: files.read(f"optimizer.{key}", rows[key]) for key in keys}
    load_optimizer_tensors(model if shards is None else shards, optimizer, found)


def restore_average(saved: CheckpointMarker, average: WeightAverage, shards: Shards | None) -> None:
    """Go on with a checkpoint's average. Raises UserError where it keeps none."""
    average.load(_average(saved, shards))


def _average(saved: CheckpointMarker, shards: Shards | None) -> Mapping[str, Tensor]:
    if saved.sharded:
        files = ShardFiles(saved)
        names = files.names("average.")
        if not names:
            raise UserError(f"{saved.path} keeps no average of the weights; it was written without `optimizer.ema`.")
        return {n: files.read(f"average.{n}", None if shards is None else _rows(shards, n)) for n in names}
    if shards is None or not (saved.path / AVERAGE).exists():
        return load_average(saved.path)
    file = WholeFile(saved.path / AVERAGE)
    return {name: file.read(name, _rows(shards, name)) for name in file.names()}


def _rows(shards: Shards, name: str) -> Any:
    """None for a name that the model does not have: whoever takes it in says so."""
    return shards.rows(name) if name in shards.tensors() else None
