"""Rotary position embeddings as a stage wants them, written so that the exported `config.json` alone reproduces them.

Transformers computes the inverse frequencies from `config.rope_parameters` when a rotary module is built. A change of
rope is therefore a change of the configuration, followed by building those modules anew: training and whoever opens the
exported folder run the same code on the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from harness.study.errors import UserError

# Types whose frequencies do not depend on `max_position_embeddings`, so that it may follow the trained context.
FREE_OF_LENGTH = {"default", "linear", "llama3", "yarn"}
DEFAULTS = {"yarn": {}, "linear": {}, "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}


def rope_parameters(config: PretrainedConfig) -> dict[str, Any] | None:
    """The configuration's rope parameters, None for a model without rotary embeddings."""
    parameters = getattr(config, "rope_parameters", None)
    return dict(parameters) if parameters else None


def resolve_rope(
    rope: Mapping[str, Any], base: Mapping[str, Any] | None, length: int = 0, own: int | None = None
) -> dict[str, Any] | None:
    """The rope parameters of a stage: `rope` is the study's `context.rope`, `base` those of the base model.

    length: positions of a row of the stage; own: those that the base model declares. `base` keeps the model's own.
    Every other type starts from plain rotary embedding with `theta` (else the base's), over the part of a head that
    the model rotates, whatever scaling the base has: `default` leaves it there; `linear` is position interpolation
    (Chen et al., 2306.15595), `yarn` Peng et al., 2309.00071, `llama3` the bands of Llama 3.1, each stretching
    `original` positions by `factor`. Raises UserError for a model without rotary embeddings or with a different one
    per layer type, and for a factor that nothing decides or that would shrink.
    """
    kind = rope["type"]
    if kind == "base":
        return dict(base) if base is not None else None
    if base is None:
        raise UserError("`context.rope` changes the rotary position embedding, but the model has none.")
    if any(isinstance(value, Mapping) for value in base.values()):
        raise UserError(
            "`context.rope` sets one rope, but the model has rope parameters per layer type; use `type: base`."
        )
    kept = {name: base[name] for name in ("partial_rotary_factor",) if name in base}
    plain = {"rope_type": kind, "rope_theta": float(rope.get("theta", base.get("rope_theta", 1e4))), **kept}
    if kind == "default":
        return plain
    original = rope.get("original") or base.get("original_max_position_embeddings") or own
    if original is None:
        raise UserError(f"`context.rope: {{type: {kind}}}` stretches the model's positions, and it declares none.")
    stretched = {**plain, **DEFAULTS[kind], "factor": _factor(rope["factor"], length, original)}
    if kind != "linear":
        stretched["original_max_position_embeddings"] = original
    own_parameters = set(rope) - {"type", "theta", "factor", "original"}
    return {**stretched, **{name: rope[name] for name in sorted(own_parameters)}}


def _factor(declared: float | str, length: int, original: int) -> float:
    factor = length / original if declared == "auto" else float(declared)
    if factor <= 1:
        raise UserError(
            f"`context.rope.factor: auto` is context.length / the model's positions, {length} / {original}: nothing to "
            "stretch. Use `rope: base`, or a factor above 1."
        )
    return factor


def set_context(config: PretrainedConfig, parameters: Mapping[str, Any] | None, length: int, own: int | None) -> None:
    """Write a stage's rope and context length into `config`.

    own: the positions that the base model declares. The declared positions grow to `length` where the rope allows it,
    so that an evaluation of the exported folder may use the whole trained context. Raises UserError where it does not.
    """
    if parameters is not None:
        config.rope_parameters = dict(parameters)
    if own is None:
        return
    if length <= own:
        config.max_position_embeddings = own
        return
    kind = None if parameters is None else parameters.get("rope_type")
    if kind not in FREE_OF_LENGTH:
        what = "learned positions" if kind is None else f"`{kind}` rope"
        raise UserError(f"`context.length: {length}` is longer than the {own} positions of the model ({what}).")
    config.max_position_embeddings = length


def rebuild_rope(model: nn.Module) -> None:
    """Build every rotary module of a live model anew from its configuration, as loading the model would."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "inv_freq") and hasattr(module, "config"):
            device = module.inv_freq.device
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], type(module)(module.config).to(device))
