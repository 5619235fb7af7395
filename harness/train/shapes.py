"""Shapes of public models, for benches: configurations without weights.

Sizes as the models' own config.json on the hub have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from harness.study.errors import UserError, nearest
from harness.train.model import build_model, config_from_fields, load_config


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> Any:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        **more,
    }


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "10M": _llama(256, 688, 8, 4, 2, 16384, rope_theta=1e4),
    "SmolLM2-135M": _llama(576, 1536, 30, 9, 3, 49152, rope_theta=1e5),
    "SmolLM2-360M": _llama(960, 2560, 32, 15, 5, 49152, rope_theta=1e5),
    "Qwen3-0.6B": {**_llama(1024, 3072, 28, 16, 8, 151936, head_dim=128, rope_theta=1e6), "model_type": "qwen3"},
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, rope_theta=5e5),
}


def shape_config(name: str, context: int) -> PretrainedConfig:
    """The configuration of a shape, a model folder or a `.gguf` file, with room for `context` positions."""
    if name in SHAPES:
        config = config_from_fields({**SHAPES[name], "max_position_embeddings": context})
    elif Path(name).exists():
        config = load_config(Path(name))
        config.max_position_embeddings = max(context, getattr(config, "max_position_embeddings", context))
    else:
        raise UserError(f"`--model {name}` is no folder or .gguf file here and no shape; {nearest(name, SHAPES)}")
    return config


def drawn(config: PretrainedConfig, device: str) -> PreTrainedModel:
    """A model with random weights, drawn on the device that it runs on: a GPU draws a billion in a second, its host in
    fifteen."""
    if device == "cpu":
        return build_model(config, 1)
    torch.manual_seed(1)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.train()  # type: ignore[no-any-return]
