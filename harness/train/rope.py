"""Rotary position embeddings as a stage wants them, written so that the exported `config.json` alone reproduces them.

Transformers computes the inverse frequencies from `config.rope_parameters` when a rotary module is built. A change of
rope is therefore a change of the configuration with which a stage's model is loaded: training and whoever opens the
exported folder run the same code on the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from harness.plan.rope import positions, resolve_rope

__all__ = ["resolve_rope", "rope_parameters", "set_context"]


def rope_parameters(config: PretrainedConfig) -> dict[str, Any] | None:
    """The configuration's rope parameters, None for a model without rotary embeddings."""
    parameters = getattr(config, "rope_parameters", None)
    return dict(parameters) if parameters else None


def set_context(config: PretrainedConfig, parameters: Mapping[str, Any] | None, length: int, own: int | None) -> None:
    """Write a stage's rope and context length into `config`; own: the positions that the base model declares.

    Raises UserError where the rope does not allow so many.
    """
    if parameters is not None:
        config.rope_parameters = dict(parameters)
    declared = positions(parameters, length, own)
    if declared is not None:
        config.max_position_embeddings = declared
