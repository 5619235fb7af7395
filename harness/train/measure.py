"""One measurement of training speed, in a process of its own: a JSON object in, a JSON object out.

Kernels are patched and compiled for a whole process, and memory is measured for one; so each measurement has its own.
The peer is transformers' Trainer on the same weights, rows, optimizer, clipping, precision and threads.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from harness.data.loader import Loader
from harness.data.token_store import TokenSource
from harness.train.collector import held_back
from harness.train.kernels import applied, check_head
from harness.train.layers import compiling, prepare_layers
from harness.train.loop import Loop
from harness.train.numerics import Numerics, Precision, set_threads
from harness.train.optimizer import build_optimizer
from harness.train.shapes import drawn, shape_config
from harness.train.witness import Witness

ADAMW = {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
RATE = 1e-3
EOS = 0
# How CUDA's allocator, cuBLAS and Triton say it, also through a compiler that wraps it.
OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemoryError",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Setting:
    """What is measured. batch: tokens of an update; micro_batch: of a forward, None for all. sources: of the mixture.

    documents: joined rows, or masked with documents of 20 to 400 tokens. updates: that are timed, after `warmup`.
    deterministic: as training always is; without, what that costs can be seen. witness: whether the first forward is
    watched, which takes seconds on a GPU.
    """

    model: str
    context: int
    batch: int
    micro_batch: int | None = None
    kernels: Any = "auto"
    compile: bool = False
    activation_checkpointing: Literal["off", "full", "selective"] = "off"
    precision: Precision = "fp32"
    documents: Literal["joined", "masked"] = "joined"
    sources: int = 1
    device: str = "auto"
    threads: int = 1
    updates: int = 8
    warmup: int = 2
    trainer: bool = False
    deterministic: bool = True
    witness: bool = True


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds of each timed update, losses of all, peak memory, shares of time; {"oom": true} when memory ran out."""
    numerics = Numerics.resolve(
        setting.device,
        setting.threads,
        setting.micro_batch,
        setting.kernels,
        setting.compile,
        setting.activation_checkpointing,
    )
    set_threads(numerics)
    if not setting.deterministic:
        torch.use_deterministic_algorithms(False)
    config = shape_config(setting.model, setting.context)
    numerics = numerics if setting.trainer else numerics.for_model(config)
    try:
        if setting.trainer:
            from harness.train.peer import train

            found = train(setting, config, pieces(setting), token_sources(setting, config.vocab_size))
        else:
            found = _ours(setting, numerics, config)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return {"oom": True}
    seconds = statistics.median(found["seconds"])
    return {
        "tokens_per_second": setting.batch / seconds,
        "update_seconds": seconds,
        **found,
        "peak_bytes": _peak_bytes(numerics.device),
        "numerics": numerics.record(),
    }


def _ours(setting: Setting, numerics: Numerics, config: Any) -> dict[str, Any]:
    model = drawn(config, numerics.device)
    with ExitStack() as stack:
        stack.enter_context(held_back(numerics.device))
        if numerics.kernels.fused_linear_cross_entropy != "torch":
            check_head(model)
        stack.enter_context(applied(model, numerics.kernels))
        stack.enter_context(compiling(numerics))
        path = pieces(setting)
        loader = Loader(path, token_sources(setting, config.vocab_size))
        loop = Loop(model, build_optimizer(model, ADAMW), loader, path, numerics)
        if not setting.witness:
            loop.witness = Witness(numerics.device, look=False)
        prepare_layers(model, numerics)
        return _timed(setting, loop)


def _timed(setting: Setting, loop: Loop) -> dict[str, Any]:
    """Updates as a segment makes them: figures are fetched every `look_every`, and that belongs to their time."""
    for _ in range(setting.warmup):
        loop.update()
    losses = [update.loss for update in loop.look()]
    every = loop.numerics.look_every
    seconds: list[float] = []
    in_look, fed = 0.0, loop.feed.seconds
    while len(seconds) < setting.updates:
        count = min(every, setting.updates - len(seconds))
        began = time.perf_counter()
        for _ in range(count):
            loop.update()
        if loop.numerics.device == "cuda":
            torch.cuda.synchronize()  # what the device still computes is no share of the look
        at = time.perf_counter()
        losses += [update.loss for update in loop.look()]
        ended = time.perf_counter()
        in_look += ended - at
        seconds += [(ended - began) / count] * count
    total = sum(seconds)
    said = loop.witness.record(loop.numerics.kernels, loop.forward.attention.kind)
    shares = {"loader_share": (loop.feed.seconds - fed) / total, "look_share": in_look / total}
    return {"seconds": seconds, "losses": losses, **shares, "ran": said}


def _peak_bytes(device: str) -> int:
    """Of the device's memory where it has its own, else of this process."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pieces(setting: Setting) -> list[dict[str, Any]]:
    """A path without end."""
    names = [chr(ord("a") + number) for number in range(setting.sources)]
    science = {
        "lr": {"shape": "constant", "value": RATE},
        "mixture": {name: f"1/{len(names)}" for name in names},
        **({"blend_from": 0} if len(names) > 1 else {}),
        "sources": {name: name for name in names},
        "data_seed": 1,
        "batch_tokens": setting.batch,
        "context": {
            "length": setting.context,
            "documents": setting.documents,
            "packing": "concat",
            "rope": {"type": "base"},
        },
        "optimizer": ADAMW,
        "precision": setting.precision,
    }
    return [{"start": 0, "end": setting.batch * 1_000_000, "stage": "bench", "science": science}]


def token_sources(setting: Setting, vocabulary: int) -> dict[str, TokenSource]:
    """Random documents, enough of them that none is seen twice in a short bench."""
    wanted = setting.batch * (setting.updates + setting.warmup) * 2
    names = pieces(setting)[0]["science"]["sources"]
    count = max(2000, wanted // 210 + 1)
    return {name: TokenSource(name, *random_documents(vocabulary, seed, count)) for seed, name in enumerate(names)}


def random_documents(vocabulary: int, seed: int, count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Documents of 20 to 400 random tokens, each ending with token 0, and where they begin."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(20, 400, size=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = draw.integers(1, vocabulary, size=int(offsets[-1])).astype("<u4")
    ids[offsets[1:] - 1] = EOS
    return ids, offsets


def rows_of(setting: Setting, sources: Mapping[str, TokenSource]) -> Iterator[Mapping[str, np.ndarray]]:
    """The rows that `measure` trains on, one by one, for the peer."""
    loader = Loader(pieces(setting), sources)
    while True:
        batch = loader.next()
        for row in range(len(batch.input_ids)):
            yield {
                "input_ids": batch.input_ids[row],
                "labels": batch.labels[row],
                "position_ids": batch.position_ids[row],
            }


def main() -> None:
    found = measure(Setting(**json.load(sys.stdin)))
    print(json.dumps(found))


def as_json(setting: Setting) -> str:
    """A setting as `main` reads it."""
    return json.dumps(asdict(setting))


if __name__ == "__main__":
    main()
