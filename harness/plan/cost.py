"""What training costs in floating-point operations, before it runs.

Per token, forward and backward: 6 N + 6 L d T for causal attention (scores and values, half of T seen on average), N
being the parameters of matrix products (all but the embedding look-up; the output head counts, tied or not), L layers
of attention width d, T the context. PaLM's appendix B (2204.02311) has 12 L d T, which counts the masked half too.
A layer with a window of w positions sees w - w^2 / 2T of them on average, once rows are longer: 6 d (2 w - w^2 / T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Dense bf16 peak of an H100 SXM; 40 % of it is what well-kept trainers reach on 0.5-8B models.
PEAK_FLOPS = 989e12
ASSUMED_UTILISATION = 0.4
GPU_HOURS_BASIS = "assumed: 40 % of 989 TFLOP/s (H100, dense bf16)"


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a model follows from. total: all parameters; matmul: those in matrix products. windows: of the
    layers that attend to the nearest positions alone; the others attend to all."""

    total: int
    matmul: int
    layers: int
    attention_width: int
    windows: tuple[int, ...] = ()

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations per trained token, forward and backward, causal attention."""
        seen = (self.layers - len(self.windows)) * context
        seen += sum(2 * near - near * near // context for near in (min(window, context) for window in self.windows))
        return 6 * self.matmul + 6 * self.attention_width * seen


def gpu_hours(flops: float) -> float:
    """Hours of one assumed GPU."""
    return flops / (PEAK_FLOPS * ASSUMED_UTILISATION) / 3600


def shape_of(manifest: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> ModelShape | None:
    """The base's shape from its manifest, else from a declared Llama-like configuration, else None."""
    if manifest is not None:
        resolved = manifest["config"]
        parameters = manifest["parameters"]
        heads = resolved.get("num_attention_heads", resolved.get("n_head", 1))
        hidden = manifest["hidden"]
        width = heads * (resolved.get("head_dim") or hidden // heads)
        layers = manifest["layers"]
        return ModelShape(parameters["total"], parameters["matmul"], layers, width, windows_of(resolved, layers))
    return _llama_shape(config) if config is not None else None


def windows_of(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The windows of a model's layers that do not see the whole row, from the fields of its configuration. 0: a layer
    whose cost does not grow with the row (linear attention, a convolution, a recurrence)."""
    window = int(config.get("sliding_window") or 0)
    kinds = config.get("layer_types")
    if kinds is None:
        return (window,) * layers if window else ()
    of_kind = {"linear_attention": 0, "conv": 0, "mamba": 0} | ({"sliding_attention": window} if window else {})
    return tuple(of_kind[kind] for kind in kinds if kind in of_kind)


def _llama_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Counted from the fields; None for another family or where a field is missing (the manifest will know)."""
    if config.get("model_type") not in {"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"}:
        return None
    try:
        hidden, layers, inner = (config[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size"))
        heads, vocab = config["num_attention_heads"], config["vocab_size"]
    except KeyError:
        return None
    head = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    body = layers * (attention + 3 * hidden * inner)
    norms = hidden * (2 * layers + 1)
    embeddings = vocab * hidden * (1 if config.get("tie_word_embeddings", False) else 2)
    return ModelShape(body + norms + embeddings, body + vocab * hidden, layers, heads * head)


# Weights in fp32 and AdamW's two moments in fp32.
BYTES_PER_PARAMETER = 12
WEIGHT_BYTES = 4


def checkpoint_bytes(optimizer: Mapping[str, Any]) -> int:
    """Bytes per parameter of a checkpoint: weights, the optimizer's state, the averaged weights, all in fp32.

    Muon keeps one buffer for matrices and two for the rest; it is counted with two, the most that it can take.
    """
    buffers = 1 if optimizer["name"] in ("lion", "sgd") else 2
    return WEIGHT_BYTES * (1 + buffers + ("ema" in optimizer))
