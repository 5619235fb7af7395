"""Three stages, each with longer rows, at one batch of tokens: what each exports is what it trained, in plain
transformers, for every rope and family."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from harness.plan.rope import head_dim
from harness.store import states
from harness.store.checkpoints import verify
from harness.store.metrics import read_steps
from harness.study.errors import UserError
from harness.train.model import build_model, config_from_fields
from harness.train.prepare import prepare
from harness.train.ranks import ALONE
from harness.train.rope import resolve_rope, rope_parameters, set_context
from harness.train.start import Start
from tests.train import build
from tests.train.build import StudyFolder, piece

OWN = 64  # positions that the base declares
LENGTHS = (64, 256, 512)
BATCH = 1024
STAGE = 2 * BATCH
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 32},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "gpt_neox": {},  # rotates a quarter of a head
    "olmo2": {},
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"type": "default", "theta": 5e5},
    "linear": {"type": "linear", "factor": "auto"},
    "ntk": {"type": "ntk", "factor": "auto"},
    "dynamic": {"type": "dynamic", "factor": 2.0},
    "yarn": {"type": "yarn", "factor": "auto"},
    "llama3": {"type": "llama3", "factor": "auto"},
}


def fields(family: str) -> dict[str, Any]:
    own = build.config_fields(family, hidden_size=64, max_position_embeddings=OWN)
    return {**own, **FAMILIES[family]}


def context(length: int, rope: dict[str, Any]) -> dict[str, Any]:
    return {"length": length, "documents": "joined", "packing": "concat", "rope": rope}


def path(rope: dict[str, Any]) -> list[dict[str, Any]]:
    """The base's own rope at its own length, then the stretched one at each longer length."""
    return [
        piece(
            number * STAGE,
            (number + 1) * STAGE,
            f"to-{length}",
            batch_tokens=BATCH,
            context=context(length, {"type": "base"} if number == 0 else rope),
            blend_from=number * STAGE,
        )
        for number, length in enumerate(LENGTHS)
    ]


# What a reader of an exported folder does: nothing of this project is imported.
PLAIN = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
found = {}
for name, folder, length in json.loads(sys.stdin.read()):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found[name] = model(input_ids=torch.arange(length).unsqueeze(0) % 60).logits.contiguous()
save_file(found, sys.argv[1])
"""


def plain_logits(folders: list[tuple[str, str, int]], out: Path) -> dict[str, np.ndarray]:
    call = [sys.executable, "-c", PLAIN, str(out)]
    subprocess.run(call, input=json.dumps(folders), text=True, check=True, cwd=out.parent)
    return load_file(out)


@pytest.mark.parametrize(
    "family",
    ["smollm3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_neox", "llama", "qwen3", "olmo2"))],
)
def test_each_stage_s_export_gives_the_logits_of_training_in_a_fresh_plain_transformers(
    family: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    folders, trained = [], {}
    for kind, rope in ROPES.items():
        study = StudyFolder(tmp_path / kind, fields(family))
        pieces = path(rope)
        names = study.declare(pieces, [piece["end"] for piece in pieces])
        for name, one, length in zip(names, pieces, LENGTHS, strict=True):
            assert study.train(name).steps == STAGE // BATCH
            checkpoint = study.state(name).checkpoint(one["end"])
            segment = states.read_segment(study.state(name))
            start = Start(verify(checkpoint), own=True)
            loop = prepare(study.folder, segment, start, build.NUMERICS, ALONE, ExitStack())
            with torch.no_grad():
                ids = torch.arange(length).unsqueeze(0) % 60
                positions = torch.arange(length).unsqueeze(0)
                logits = loop.model(input_ids=ids, position_ids=positions).logits
            trained[f"{kind}-{length}"] = logits.numpy()
            folders.append((f"{kind}-{length}", str(checkpoint / "model"), length))
            config = AutoConfig.from_pretrained(checkpoint / "model")
            assert config.max_position_embeddings == max(length, OWN)
            labels = [row["labels"] for row in read_steps(study.state(name)).rows]
            assert labels == [BATCH] * len(labels), "tokens per batch stay what they were"
    plain = plain_logits(folders, tmp_path / "logits.safetensors")
    assert plain.keys() == trained.keys() and len(plain) == len(ROPES) * len(LENGTHS)
    for name, logits in trained.items():
        np.testing.assert_allclose(plain[name], logits, rtol=0, atol=1e-6, err_msg=name)
    for length in LENGTHS[1:]:
        longest = [trained[f"{kind}-{length}"] for kind in ROPES]
        differ = [not np.allclose(a, b, atol=1e-6) for i, a in enumerate(longest) for b in longest[:i]]
        assert all(differ), "every rope is another one"


def parameters(family: str, rope: dict[str, Any], length: int) -> tuple[Any, dict[str, Any]]:
    config = config_from_fields(fields(family))
    resolved = resolve_rope(rope, rope_parameters(config), length, OWN, head_dim(config.to_dict()))
    assert resolved is not None
    set_context(config, resolved, length, OWN)
    return config, resolved


def test_every_stage_stretches_the_base_s_positions_and_not_those_of_the_stage_before() -> None:
    for length, factor in ((256, 4.0), (512, 8.0)):
        for kind in ("linear", "yarn", "llama3"):
            _, resolved = parameters("llama", ROPES[kind], length)
            assert resolved["factor"] == factor and resolved["rope_theta"] == 1e4
        _, ntk = parameters("llama", ROPES["ntk"], length)
        assert ntk == {"rope_type": "default", "rope_theta": 1e4 * factor ** (32 / 30)}
        _, dynamic = parameters("llama", ROPES["dynamic"], length)
        assert dynamic == {"rope_type": "default", "rope_theta": 1e4 * (2 * factor - 1) ** (32 / 30)}


def test_ntk_leaves_the_fastest_frequency_and_divides_the_slowest_by_the_factor() -> None:
    for family in FAMILIES:
        plain = build_model(config_from_fields(fields(family)), 1)
        config, _ = parameters(family, {"type": "ntk", "factor": 8.0}, 256)
        old, new = (dict(model.named_buffers()) for model in (plain, build_model(config, 1)))
        name = next(name for name in old if name.endswith("inv_freq"))
        assert new[name][0] == old[name][0] == 1.0
        torch.testing.assert_close(new[name][-1], old[name][-1] / 8, rtol=1e-5, atol=0)


def test_ntk_is_the_published_theta() -> None:
    """At theta 5e5 and heads of 128: 4.134e6, 8.360e6 and 3.418e7 for factors of 8, 16 and 64."""
    base = {"rope_type": "default", "rope_theta": 5e5}
    for factor, theta in ((8.0, 4.134e6), (16.0, 8.360e6), (64.0, 3.418e7)):
        found = resolve_rope({"type": "ntk", "factor": factor}, base, 8192 * 8, 8192, 128)
        assert found is not None and math.isclose(found["rope_theta"], theta, rel_tol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_dynamic_is_what_transformers_computes_for_a_row_of_the_stage_s_length(family: str, factor: float) -> None:
    config, _ = parameters(family, {"type": "dynamic", "factor": factor}, 256)
    theirs = config_from_fields(fields(family))
    theirs.rope_parameters = {**rope_parameters(theirs), "rope_type": "dynamic", "factor": factor}
    ours, stock = build_model(config, 1).eval(), build_model(theirs, 1).eval()
    with torch.no_grad():
        ids = torch.arange(256).unsqueeze(0) % 60
        torch.testing.assert_close(ours(input_ids=ids).logits, stock(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_stock_dynamic_scores_a_row_by_the_rows_before_it_and_ours_does_not(tmp_path: Path) -> None:
    """The reason why a theta is exported: a score would be a matter of order."""
    config, _ = parameters("llama", {"type": "dynamic", "factor": 4.0}, 256)
    build_model(config, 1).save_pretrained(tmp_path)
    stock = config_from_fields(fields("llama"))
    stock.rope_parameters = {**rope_parameters(stock), "rope_type": "dynamic", "factor": 4.0}
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    short, long = (torch.arange(length).unsqueeze(0) % 60 for length in (100, 256))
    for model, same in ((ours, True), (build_model(stock, 1).eval(), False)):
        with torch.no_grad():
            before = model(input_ids=short).logits
            model(input_ids=long)
            assert torch.equal(before, model(input_ids=short).logits) is same


@pytest.mark.parametrize(
    ("rope", "length", "head", "message"),
    [
        (
            {"type": "dynamic", "factor": 2.0},
            64,
            32,
            "longer than the model's 64 positions, and `context.length` is 64",
        ),
        ({"type": "ntk", "factor": "auto"}, 64, 32, "nothing to stretch"),
        ({"type": "ntk", "factor": 2.0}, 128, 2, "more than 2 dimensions"),
        ({"type": "ntk", "factor": 2.0}, 128, None, "more than 2 dimensions"),
    ],
)
def test_a_theta_that_cannot_be_stretched_is_a_user_error(
    rope: dict[str, Any], length: int, head: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve_rope(rope, {"rope_type": "default", "rope_theta": 1e4}, length, OWN, head)
