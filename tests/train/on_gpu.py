"""Run by test_gpu in a process of its own: trains a small model and writes losses, weights and what ran.

    python -m tests.train.on_gpu OUT '{"kernels": ..., "precision": ..., "rate": ..., "context": ..., ...}'

A process of its own, since Liger patches modules for a whole process, and memory and determinism are a process's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from harness.data.loader import Loader
from harness.train.kernels import applied
from harness.train.layers import prepare_layers
from harness.train.loop import Loop
from harness.train.model import build_model, config_from_fields
from harness.train.numerics import Numerics, set_threads
from harness.train.optimizer import build_optimizer
from tests.train import build

# Wide enough for every kernel, as Liger's mini models are.
FIELDS = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def train(out: Path, asked: dict[str, Any]) -> None:
    numerics = Numerics.resolve(
        asked.get("device", "cuda"), 1, kernels=asked["kernels"], compile=asked.get("compile", False)
    )
    set_threads(numerics)
    context, rows, updates = asked.get("context", 512), asked.get("rows", 4), asked.get("updates", 32)
    config = config_from_fields(
        build.config_fields(asked.get("family", "llama"), **FIELDS, max_position_embeddings=context)
    )
    numerics = numerics.for_model(config)
    model = build_model(config, 1).to(numerics.device)
    piece = build.piece(
        0,
        updates * rows * context,
        batch_tokens=rows * context,
        context={"length": context, "documents": asked.get("documents", "masked")},
        precision=asked["precision"],
        lr={"shape": "constant", "value": asked["rate"]},
        optimizer={"z_loss": 1e-4},
    )
    with applied(model, numerics.kernels):
        prepare_layers(model, numerics)
        optimizer = build_optimizer(model, piece["science"]["optimizer"])
        loop = Loop(model, optimizer, Loader([piece], build.token_sources()), [piece], numerics)
        for _ in range(updates):
            loop.update()
        seen = loop.look()
        said = loop.witness.record(numerics.kernels, loop.forward.attention.kind)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.named_parameters()}
    save_file(weights, out / "weights.safetensors")
    figures = [{"loss": u.loss, "grad_norm": u.grad_norm, "by_source": dict(u.loss_by_source)} for u in seen]
    facts = {"updates": figures, "ran": said, "device": numerics.processor}
    if numerics.device == "cuda":
        facts["peak_bytes"] = torch.cuda.max_memory_allocated()
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]))
