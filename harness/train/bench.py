"""`ablate bench loop`: the harness's training loop beside a bare PyTorch loop, on one machine in one process.

Both train the same model with the same fused optimizer, clipping, precision, threads and kind of rows. They take turns
of a few steps, who begins changes every round, and medians are compared: what the machine does meanwhile hits both.
Our side carries everything that a segment does per step: loader, figures per source, metrics on disk.
"""

from __future__ import annotations

import inspect
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.data.loader import Loader
from harness.data.token_store import TokenSource
from harness.plan.cost import ModelShape
from harness.store.attempts import begin
from harness.store.layout import StateFolder
from harness.train.loop import Loop
from harness.train.measure import ADAMW, RATE, random_documents
from harness.train.model import build_model, config_from_fields, shape_of
from harness.train.numerics import Numerics, Precision, set_threads
from harness.train.optimizer import build_optimizer
from harness.train.record import Recorder

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
STEPS_PER_TURN = 4


def bare_loop(model: Any, tokens: Tensor, rows: int, length: int, masked: bool, bf16: bool) -> Iterator[float]:
    """Plain PyTorch: rows cut from one array of tokens, documents ending with token 0. Yields the loss of each step."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
        betas=(0.9, 0.95),
        fused=True,
    )
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    positions = torch.arange(length, device=device)
    position_ids, mask, at = positions.expand(rows, length), None, 0
    while True:
        if at + rows * length + 1 > len(tokens):
            at = 0
        chunk = tokens[at : at + rows * length + 1].to(device, torch.int64)
        at += rows * length
        inputs, labels = chunk[:-1].view(rows, length), chunk[1:].view(rows, length)
        if masked:
            starts = functional.pad(inputs[:, :-1] == 0, (1, 0))
            document = starts.cumsum(1)
            begins = torch.where(starts, positions, 0).cummax(1).values
            position_ids = positions - begins
            mask = ((document[:, :, None] == document[:, None, :]) & causal)[:, None]
            labels = torch.where(inputs == 0, -100, labels)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(input_ids=inputs, position_ids=position_ids, attention_mask=mask, use_cache=False).logits
        loss = functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def harness_loop(folder: Path, loop: Loop, shape: ModelShape) -> Iterator[float]:
    """The harness's own loop with all that a segment does at each step but checkpoints. Yields each step's loss."""
    segment = {"id": "bench", "tokens_from": 0, "tokens_to": loop.pieces[-1]["end"], "pieces": loop.pieces}
    recorder = Recorder(begin(StateFolder(folder), {}), segment, shape, 0, lambda fields: None)
    while True:
        loop.update()
        if loop.unseen >= loop.numerics.look_every:
            recorder.updates(loop.look())
        yield recorder.last.loss if recorder.last else float("nan")


def bench_loop(
    config: Mapping[str, Any] | None = None,
    rows: int = 4,
    length: int = 128,
    documents: str = "masked",
    precision: Precision = "fp32",
    device: str = "auto",
    threads: int = 1,
    rounds: int = 40,
) -> dict[str, Any]:
    """Step times of both loops and their ratio, harness / bare, as JSON. `bare_source` is the bare loop's code."""
    numerics = Numerics.resolve(device, threads)
    set_threads(numerics)
    fields = dict(config or MODEL)
    with tempfile.TemporaryDirectory() as folder:
        ours = _ours(Path(folder), fields, rows, length, documents, precision, numerics)
        bare = _bare(fields, rows, length, documents, precision, numerics)
        times = _alternate({"harness": ours, "bare": bare}, rounds, numerics.device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    turns = sorted(a / b for a, b in zip(times["harness"], times["bare"], strict=True))
    return {
        "ratio": medians["harness"] / medians["bare"],
        "ratio_quartiles": [turns[len(turns) // 4], turns[3 * len(turns) // 4]],
        "step_ms": {name: 1e3 * value for name, value in medians.items()},
        "tokens_per_second": {name: rows * length / value for name, value in medians.items()},
        "turns": rounds,
        "steps_per_turn": STEPS_PER_TURN,
        "settings": {"rows": rows, "length": length, "documents": documents, "precision": precision, "model": fields},
        "numerics": numerics.record(),
        "bare_source": inspect.getsource(bare_loop),
    }


def _alternate(loops: Mapping[str, Iterator[float]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds per step of each loop in each round; who goes first changes from round to round."""
    for loop in loops.values():
        _turn(loop, device)
        _turn(loop, device)
    times: dict[str, list[float]] = {name: [] for name in loops}
    order = list(loops)
    for _ in range(rounds):
        for name in order:
            times[name].append(_turn(loops[name], device))
        order.reverse()
    return times


def _turn(loop: Iterator[float], device: str) -> float:
    began = time.perf_counter()
    for _ in range(STEPS_PER_TURN):
        next(loop)
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS_PER_TURN


def _ours(
    folder: Path,
    fields: Mapping[str, Any],
    rows: int,
    length: int,
    documents: str,
    precision: str,
    numerics: Numerics,
) -> Iterator[float]:
    science = {
        "lr": {"shape": "constant", "value": RATE},
        "mixture": {"a": "3/4", "b": "1/4"},
        "blend_from": 0,
        "sources": {"a": "a", "b": "b"},
        "data_seed": 1,
        "batch_tokens": rows * length,
        "context": {"length": length, "documents": documents, "packing": "concat", "rope": {"type": "base"}},
        "optimizer": ADAMW,
        "precision": precision,
    }
    pieces = [{"start": 0, "end": rows * length * 1_000_000, "stage": "bench", "science": science}]
    sources = {name: TokenSource(name, *random_documents(fields["vocab_size"], seed)) for seed, name in enumerate("ab")}
    config = config_from_fields(fields)
    model = build_model(config, 1).to(numerics.device)
    loop = Loop(model, build_optimizer(model, ADAMW), Loader(pieces, sources), pieces, numerics)
    sizes = shape_of(config)
    return harness_loop(folder, loop, ModelShape(sizes.total, sizes.matmul, sizes.layers, sizes.hidden))


def _bare(
    fields: Mapping[str, Any], rows: int, length: int, documents: str, precision: str, numerics: Numerics
) -> Iterator[float]:
    model = build_model(config_from_fields(fields), 1).to(numerics.device)
    tokens = torch.from_numpy(random_documents(fields["vocab_size"], 0)[0].astype(np.int64))
    return bare_loop(model, tokens, rows, length, documents == "masked", precision == "bf16-mixed")
