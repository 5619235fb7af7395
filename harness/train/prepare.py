"""What a segment begins with: model, optimizer and data as its path has them, on the devices that train it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from harness.data.loader import Loader
from harness.data.token_store import TokenSource
from harness.plan.rope import head_dim
from harness.store import manifests
from harness.store.layout import Folder
from harness.study.errors import UserError
from harness.train.average import WeightAverage, decay_at
from harness.train.checkpoint import load_cursor, load_spikes
from harness.train.kernels import applied, check_head
from harness.train.layers import compiling, prepare_layers
from harness.train.loop import Loop, forward_of, piece_at
from harness.train.model import load_config
from harness.train.numerics import Numerics
from harness.train.optimizer import build_optimizer
from harness.train.packing import check_causal, check_isolation
from harness.train.ranks import Ranks
from harness.train.restore import restore_average, restore_model, restore_optimizer
from harness.train.rope import resolve_rope, set_context
from harness.train.sharding import Shards
from harness.train.spikes import SpikeWindow, window_of
from harness.train.start import Start
from harness.train.switch import begins_cold

CONSTANT_IN_A_SEGMENT = ("batch_tokens", "context", "optimizer", "optimizer_from", "precision")


def prepare(
    folder: Folder,
    segment: Mapping[str, Any],
    start: Start,
    numerics: Numerics,
    ranks: Ranks,
    stack: ExitStack,
) -> Loop:
    """Model, optimizer and data as they were when the checkpoint `start` was written, as this segment wants them.

    stack: what is changed of the process while the segment is trained is put back when it is closed. Raises UserError
    when a batch cannot be divided among the ranks, or when they run on unequal machines.
    """
    science = constant_science(segment)
    context = science["context"]
    ranks.check_rows(science["batch_tokens"], context["length"])
    _check_numerics(numerics, ranks)
    sources = _open_sources(folder, segment)
    loader = Loader(segment["pieces"], sources, load_cursor(start.path), start.tokens)
    model = restore_model(start.marker, _config(start, context, read_base(folder)))
    check_causal(model)
    if context["documents"] == "masked":
        check_isolation(model)
    if numerics.kernels.fused_linear_cross_entropy != "torch":
        check_head(model)
    stack.enter_context(applied(model, numerics.kernels))
    stack.enter_context(compiling(numerics))
    optimizer = build_optimizer(model, science["optimizer"])
    forward = forward_of(model, segment["pieces"], loader, numerics)
    if forward.attention.kind == "by-document":
        check_isolation(model, forward.attention.arguments)
    prepare_layers(model, numerics)
    shards: Shards | None = None
    if numerics.strategy == "fsdp":
        shards = Shards(forward, ranks, numerics.device, science["precision"], optimizer)
    else:
        model.to(numerics.device)
    if not begins_cold(segment["pieces"], start.tokens):
        restore_optimizer(start.marker, model, optimizer, shards)
    average = _average(segment, start, model if shards is None else shards, shards)
    spikes = _spikes(segment, start, numerics.device)
    return Loop(model, optimizer, loader, segment["pieces"], numerics, average, ranks, spikes, forward, shards)


def _config(start: Start, context: Mapping[str, Any], base: Mapping[str, Any]) -> PretrainedConfig:
    """The model's configuration with the context of the segment."""
    config = load_config(start.path / "model")
    length, positions = context["length"], base["max_positions"]
    rope = resolve_rope(context["rope"], base["rope"], length, positions, head_dim(config.to_dict()))
    set_context(config, rope, length, positions)
    return config


def read_base(folder: Folder) -> dict[str, Any]:
    """The manifest of the base. Raises UserError where it is missing or damaged."""
    base = manifests.read_base(folder)
    if base is None:
        raise UserError(f"{folder.base_manifest} is missing or damaged; `ablate run` resolves the base again.")
    return base


def _check_numerics(numerics: Numerics, ranks: Ranks) -> None:
    """Raise UserError unless an update gives this rank the bits that it gives rank 0."""
    of_first = ranks.led(numerics.record)
    own = numerics.record()
    differs = [
        f"{name} {of_first.get(name)!r} and {own.get(name)!r}"
        for name in sorted(of_first.keys() | own.keys())
        if of_first.get(name) != own.get(name)
    ]
    if differs:
        raise UserError(f"ranks 0 and {ranks.rank} cannot train together, since they differ: {'; '.join(differs)}.")


def _average(
    segment: Mapping[str, Any], start: Start, weights: nn.Module, shards: Shards | None
) -> WeightAverage | None:
    """The moving average of the weights: the checkpoint's where the path goes on with it, else begun at its weights."""
    last = min(start.tokens, segment["tokens_to"] - 1)  # at the segment's end nothing is left to do but to say so
    decay = decay_at(segment["pieces"], last)
    if decay is None:
        return None
    average = WeightAverage(weights, decay)
    if decay_at(segment["pieces"], start.tokens - 1) == decay:
        restore_average(start.marker, average, shards)
    return average


def _spikes(segment: Mapping[str, Any], start: Start, device: str) -> SpikeWindow | None:
    """The losses that spikes stand out from: the checkpoint's where the path goes on with them, else none yet."""
    last = min(start.tokens, segment["tokens_to"] - 1)
    window, goes_on = window_of(segment["pieces"], start.tokens, last, torch.device(device))
    if window is not None and goes_on:
        window.load(load_spikes(start.path))
    return window


def constant_science(segment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The science of the segment's pieces, checked to change in nothing that a live model and optimizer hold."""
    within = [piece["science"] for piece in segment["pieces"] if piece["end"] > segment["tokens_from"]]
    for name in CONSTANT_IN_A_SEGMENT:
        if any(science.get(name) != within[0].get(name) for science in within):
            raise ValueError(f"segment {segment['id']}: `{name}` changes inside it")
    science: Mapping[str, Any] = piece_at(segment["pieces"], segment["tokens_from"])["science"]
    return science


def _open_sources(folder: Folder, segment: Mapping[str, Any]) -> dict[str, TokenSource]:
    """Every source that the path names, past stages included: their cursors go along."""
    sources = {}
    for name in sorted({name for piece in segment["pieces"] for name in piece["science"]["mixture"]}):
        manifest = manifests.read_source(folder, name)
        if manifest is None:
            raise UserError(f"{folder.source_manifest(name)} is missing or damaged; `ablate run` resolves it again.")
        sources[name] = TokenSource.open(manifest["tokens"])
    return sources
