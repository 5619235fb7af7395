"""Floating-point operations of a token, against counting what each position of a row attends to."""

from __future__ import annotations

from typing import Any

import pytest

from harness.plan.cost import ModelShape, shape_of, windows_of

FULL, NEAR = "full_attention", "sliding_attention"


def manifest(**config: Any) -> dict[str, Any]:
    fields = {"num_attention_heads": 4, "head_dim": 16, **config}
    return {"config": fields, "parameters": {"total": 9000, "matmul": 7000}, "layers": 4, "hidden": 64}


@pytest.mark.parametrize("context", [64, 256, 4096])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sliding_window": None, "layer_types": [FULL] * 4},
        {"sliding_window": 128},
        {"sliding_window": 128, "layer_types": [NEAR, NEAR, NEAR, FULL]},
        {"layer_types": ["linear_attention", "conv", FULL, "linear_attention"]},
    ],
)
def test_attention_costs_what_each_layer_sees(config: dict[str, Any], context: int) -> None:
    """Scores and values are two products of 2 d operations for each position seen, three times (forward, backward)."""
    kinds = config.get("layer_types") or [NEAR if config.get("sliding_window") else FULL] * 4
    most = {FULL: context, NEAR: config.get("sliding_window") or context}
    pairs = sum(min(at + 1, most.get(kind, 0)) for kind in kinds for at in range(context))
    expected = 6 * 7000 + 3 * 2 * 2 * 64 * pairs / context
    shape = shape_of(manifest(**config), None)
    assert shape is not None
    # Half of a row is seen on average, not half of it and half a position.
    assert shape.flops_per_token(context) == pytest.approx(expected, abs=4 * 6 * 64 + 1)


def test_a_model_without_windows_costs_what_it_did() -> None:
    assert ModelShape(9000, 7000, 4, 64).flops_per_token(1000) == 6 * 7000 + 6 * 4 * 64 * 1000
    assert windows_of({"sliding_window": 4096, "layer_types": [FULL] * 4}, 4) == ()
