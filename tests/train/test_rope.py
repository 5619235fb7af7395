"""Rotary embeddings: what a stage asks for is what the model and its exported configuration have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.study.errors import UserError
from harness.train.model import build_model, config_from_fields
from harness.train.rope import resolve_rope, rope_parameters, set_context
from tests.train import build

THETA = {"type": "default", "theta": 5e5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _config(model_type: str = "llama", **changes: Any) -> Any:
    return config_from_fields(build.config_fields(model_type, **changes))


def test_frequencies_are_powers_of_theta() -> None:
    config = _config()
    set_context(config, resolve_rope(THETA, rope_parameters(config)), 64, 64)
    found = build_model(config, 1).model.rotary_emb.inv_freq
    torch.testing.assert_close(found, torch.tensor([5e5 ** (-2 * i / 8) for i in range(4)]))


def test_a_partly_rotated_head_stays_partly_rotated() -> None:
    base = rope_parameters(_config("gpt_neox"))
    assert base is not None and "partial_rotary_factor" in base
    resolved = resolve_rope(THETA, base)
    assert resolved is not None and resolved["partial_rotary_factor"] == base["partial_rotary_factor"]
    assert resolved["rope_theta"] == 5e5


def test_base_keeps_the_model_s_own_kind_and_default_replaces_it_whole() -> None:
    assert resolve_rope({"type": "base"}, LLAMA3) == LLAMA3
    assert resolve_rope(THETA, LLAMA3) == {"rope_type": "default", "rope_theta": 5e5}


def test_positions_grow_with_the_context_and_shrink_back_to_the_base_s() -> None:
    config = _config()
    for length, expected in ((128, 128), (32, 64)):
        set_context(config, rope_parameters(config), length, 64)
        assert config.max_position_embeddings == expected


@pytest.mark.parametrize(
    ("family", "rope", "length", "message"),
    [
        ("gpt2", THETA, 16, "rotary position embedding, but the model has none"),
        ("gpt2", {"type": "base"}, 128, "longer than the 64 positions of the model .learned positions"),
        ("llama", {"type": "yarn", "factor": "auto"}, 64, "nothing to stretch"),
    ],
)
def test_what_the_model_cannot_do_is_a_user_error(family: str, rope: dict[str, Any], length: int, message: str) -> None:
    config = _config(family)
    with pytest.raises(UserError, match=message):
        own = config.max_position_embeddings
        set_context(config, resolve_rope(rope, rope_parameters(config), length, own), length, own)


def test_one_theta_for_a_model_with_a_rope_per_layer_type_is_refused() -> None:
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert resolve_rope({"type": "base"}, nested) == nested
    with pytest.raises(UserError, match="per layer type"):
        resolve_rope(THETA, nested)


STRETCHED = [
    {"type": "linear", "factor": 2.0},
    {"type": "linear", "factor": "auto", "theta": 5e5},
    {"type": "yarn", "factor": "auto"},
    {"type": "yarn", "factor": 4.0, "original": 32, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.1},
    {"type": "llama3", "factor": "auto"},
    {"type": "llama3", "factor": 8.0, "original": 32, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
]


@pytest.mark.parametrize("rope", STRETCHED)
def test_the_exported_configuration_alone_reproduces_a_stretched_rope(rope: dict[str, Any], tmp_path: Path) -> None:
    config = _config()
    set_context(config, resolve_rope(rope, rope_parameters(config), 128, 64), 128, 64)
    trained = build_model(config, 1)
    trained.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert plain.config.max_position_embeddings == 128
    for length in (20, 64, 128):
        ids = torch.arange(length).unsqueeze(0) % 60
        assert torch.equal(trained.eval()(input_ids=ids).logits, plain(input_ids=ids).logits), length


def test_position_interpolation_divides_every_frequency() -> None:
    config = _config()
    plain = build_model(config, 1).model.rotary_emb.inv_freq
    set_context(config, resolve_rope(STRETCHED[0], rope_parameters(config), 128, 64), 128, 64)
    torch.testing.assert_close(build_model(config, 1).model.rotary_emb.inv_freq, plain / 2)


def test_yarn_leaves_fast_frequencies_stretches_slow_ones_and_scales_attention_as_published() -> None:
    config = _config(hidden_size=256, num_attention_heads=2, num_key_value_heads=2)
    plain = build_model(config, 1).model.rotary_emb.inv_freq
    rope = {"type": "yarn", "factor": 8.0, "original": 8192, "theta": 1e4}
    set_context(config, resolve_rope(rope, rope_parameters(config), 128, 64), 128, 64)
    rotary = build_model(config, 1).model.rotary_emb
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(8) + 1) == pytest.approx(1.2079, abs=1e-4)
    torch.testing.assert_close(rotary.inv_freq[:5], plain[:5])
    torch.testing.assert_close(rotary.inv_freq[-5:], plain[-5:] / 8)


def test_a_stage_derives_its_rope_from_the_base_and_not_from_a_scaled_one() -> None:
    resolved = resolve_rope({"type": "linear", "factor": "auto"}, LLAMA3, 128, 64)
    assert resolved == {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, "32 positions before llama3's bands"
