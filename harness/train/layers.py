"""What is done to a model's layers as they are: activations computed again in the backward, and compilation.

Both work on the layers in place, so parameters keep their names and a checkpoint is the same with them and without.
Activation checkpointing first: a compiled layer then holds its own recomputation. Sharding comes after both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from harness.study.errors import UserError
from harness.train.numerics import Numerics

# What `selective` keeps: results of the dear operations, matrix products and attention. The rest (norms, activations,
# rotations) is memory traffic that is cheap to do again.
_aten = torch.ops.aten
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.higher_order.flex_attention,  # seen in compiled layers alone; elsewhere it is done again
    }
)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated layers of a model, in order: those that transformers would not have split. Raises UserError where
    they cannot be told."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if len(layers) != count:
        raise UserError(
            f"compilation, recomputed activations and `strategy: fsdp` take a model layer by layer, and of "
            f"{type(model).__name__} {len(layers)} layers are known where its configuration says {count}."
        )
    return layers


@contextmanager
def compiling(numerics: Numerics) -> Iterator[None]:
    """What is compiled inside is compiled anew for every shape, and forgotten after it.

    All layers of all models of a process share the compiler's memory: a segment would run other code after another one
    than in a process of its own, and after some shapes torch goes on uncompiled, with a line in a log.
    """
    if not numerics.compile and numerics.device != "cuda":
        yield
        return
    settings = {"automatic_dynamic_shapes": False, "recompile_limit": 64, "fail_on_recompile_limit_hit": True}
    torch._dynamo.reset()
    with torch._dynamo.config.patch(settings):
        try:
            yield
        finally:
            torch._dynamo.reset()


def prepare_layers(model: PreTrainedModel, numerics: Numerics) -> None:
    """Do to the layers of `model` what `numerics` says."""
    if numerics.activation_checkpointing != "off":
        contexts: dict[str, Any] = {}
        if numerics.activation_checkpointing == "selective":
            contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
        for layer in decoder_layers(model):
            _recompute(layer, contexts)
    if numerics.compile:
        for layer in decoder_layers(model):
            layer.compile(dynamic=False)


def _recompute(layer: nn.Module, contexts: dict[str, Any]) -> None:
    forward: Callable[..., Any] = layer.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        # Nothing in a forward is random, so there is no random state to put back.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **contexts, **kwargs)

    layer.forward = recomputed


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
