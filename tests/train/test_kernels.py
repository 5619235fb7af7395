"""Which kernels run: chosen, applied, proven, and put back; what cannot be had is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.store.atomic import read_json, read_json_lines
from harness.study.errors import UserError
from harness.train import kernels as room
from harness.train.fused import chunk_rows
from harness.train.kernels import Kernels, applied, check_head, check_seen, resolve
from harness.train.model import config_from_fields
from harness.train.numerics import Numerics
from tests.train import build

ROOT = Path(__file__).resolve().parents[2]
LIGER = Kernels("liger", "liger", "liger", "liger")
COVERED = ["llama", "qwen2", "qwen3", "olmo2", "smollm3", "mistral"]


def _config(model_type: str = "llama", **changes: Any) -> Any:
    return config_from_fields(build.config_fields(model_type, **changes))


def test_auto_on_a_cpu_is_plain_torch_and_says_so() -> None:
    chosen = resolve("auto", _config(), "cpu")
    assert chosen.label == "torch" and "CPU" in chosen.why


def test_auto_on_a_gpu_takes_what_liger_has_for_the_family() -> None:
    assert resolve("auto", _config("llama"), "cuda").label == "liger"
    pythia = resolve("auto", _config("gpt_neox"), "cuda")
    assert pythia.parts == {
        "rope": "torch",
        "rms_norm": "torch",
        "swiglu": "torch",
        "fused_linear_cross_entropy": "liger",
    }
    compiled = resolve("auto", _config("llama"), "cuda", compiled=True)
    assert compiled.liger == ("fused_linear_cross_entropy",), "the compiler fuses the layers itself"


@pytest.mark.parametrize(
    ("asked", "family", "device", "compiled", "sentence"),
    [
        ("liger", "llama", "cpu", False, "Liger needs a GPU"),
        ({"fused_linear_cross_entropy": "liger"}, "llama", "cpu", False, "Liger needs a GPU"),
        ("liger", "gpt_neox", "cuda", False, "none for a gpt_neox model"),
        ({"rope": "liger"}, "gpt2", "cuda", False, "none for a gpt2 model"),
        ("liger", "llama", "cuda", True, "beside `launch.compile: true`"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    asked: Any, family: str, device: str, compiled: bool, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=sentence):
        resolve(asked, _config(family), device, compiled)


def test_ligers_rope_is_not_rotated_twice() -> None:
    """It works in place, on what selective recomputation keeps."""
    with pytest.raises(UserError, match="rotates in place"):
        resolve("liger", _config(), "cuda", recomputed="selective")
    assert resolve("auto", _config(), "cuda", recomputed="selective").rope == "torch"
    assert resolve("liger", _config(), "cuda", recomputed="full").rope == "liger"


def test_a_head_that_is_more_than_it_says_is_found() -> None:
    model = build.model()
    check_head(model)
    model.lm_head.register_forward_hook(lambda module, given, logits: 2 * logits)
    whole = model.forward
    model.forward = lambda **given: SimpleNamespace(logits=whole(**given).logits.tanh())
    with pytest.raises(UserError, match="does more to its logits"):
        check_head(model)


def test_without_liger_it_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is not installed"):
        resolve("liger", _config(), "cuda")
    chosen = resolve("auto", _config(), "cuda")
    assert chosen.label == "fused_linear_cross_entropy chunked" and "not installed" in chosen.why


def test_a_head_that_does_more_than_multiply_is_not_fused() -> None:
    capped = config_from_fields(
        {
            "model_type": "gemma2",
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
        }
    )
    with pytest.raises(UserError, match="final_logit_softcapping"):
        resolve({"fused_linear_cross_entropy": "chunked"}, capped, "cpu")
    assert "fused_linear_cross_entropy" not in resolve("auto", capped, "cuda").liger


@pytest.mark.parametrize("family", COVERED)
def test_every_module_of_a_part_is_ligers_inside_and_the_family_is_its_own_again_after(family: str) -> None:
    model = build.model(family)
    module = sys.modules[type(model).__module__]
    before = dict(vars(module))
    with applied(model, LIGER):
        assert module.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
        norms = [child for child in model.modules() if type(child).__name__.endswith("RMSNorm")]
        assert norms and all(child._get_name() == "LigerRMSNorm" for child in norms)
        assert all(layer.mlp._get_name() == "LigerSwiGLUMLP" for layer in model.model.layers)
    assert vars(module) == before
    fresh = build.model(family)
    assert type(fresh.model.norm).__module__.startswith("transformers"), "what is evaluated next is plain"


def test_a_part_that_one_module_escapes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from liger_kernel.transformers import monkey_patch

    real = monkey_patch._apply_liger_kernel_to_instance

    def but_one(model: Any, **chosen: bool) -> None:
        real(model=model, **chosen)
        mlp = model.model.layers[1].mlp
        mlp.forward = type(mlp).forward.__get__(mlp)

    monkeypatch.setattr(monkey_patch, "_apply_liger_kernel_to_instance", but_one)
    model = build.model()
    with pytest.raises(UserError, match=r"swiglu.*1 of 2 modules.*layers\.1\.mlp"), applied(model, LIGER):
        pass


def test_a_family_that_liger_passes_over_in_silence_is_an_error() -> None:
    with pytest.raises(UserError, match="is not active"), applied(build.model("gpt_neox"), Kernels(rope="liger")):
        pass


def test_a_kernel_that_was_never_launched_is_an_error() -> None:
    seen = Counter({"_triton_rope": 4, "_rms_norm_forward_kernel": 9, "_swiglu_forward_kernel": 4, "gemm": 20})
    with pytest.raises(UserError, match="liger_cross_entropy_kernel"):
        check_seen(LIGER, seen)
    check_seen(LIGER, seen + Counter({"liger_cross_entropy_kernel": 2}))
    check_seen(Kernels(), Counter())


def test_chunks_of_the_loss_are_whole_tiles_of_a_gigabyte() -> None:
    """Llama-3.2-1B, SmolLM2-135M and a tiny vocabulary; on a CPU what a cache holds."""
    assert [chunk_rows(size, "cuda") for size in (128256, 49152, 512)] == [2048, 5376, 1 << 19]
    assert [chunk_rows(size, "cpu") for size in (128256, 49152, 512)] == [32, 85, 8192]


def test_an_attempt_says_which_kernels_ran(tmp_path: Path) -> None:
    study = build.StudyFolder(tmp_path)
    (name,) = study.declare([build.piece(0, 2 * build.BATCH)], [2 * build.BATCH])
    numerics = replace(build.NUMERICS, asked={"fused_linear_cross_entropy": "chunked"})
    study.train(name, numerics)
    env = read_json(study.state(name).attempt(0) / "env.json")
    assert env["numerics"]["kernels"] == "fused_linear_cross_entropy chunked"
    (said,) = [event for event in read_json_lines(study.state(name).events) if event["kind"] == "kernels"]
    assert said["kernels"] == "fused_linear_cross_entropy chunked"
    assert said["attention"] == "dense" and said["sdpa"] == ["flash_attention_for_cpu"]


def test_defaults_are_recorded_as_before() -> None:
    """A new option that nobody uses must not make older attempts differ."""
    record = Numerics.resolve("cpu").record()
    assert set(record) == {"device", "threads", "micro_batch", "torch", "processor", "kernels", "world"}
    assert record["kernels"] == "torch"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """Liger's own fused loss beside torch, run by Triton's interpreter, which a process chooses before it begins."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.interpreted"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# Tolerances (absolute, relative) of Liger's suite for a mean: test/transformers/test_fused_linear_cross_entropy.py
TOLERANCE = {"fp32": (1e-5, 5e-4), "bf16": (5e-3, 5e-2)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("terms", ["plain", "z-loss", "smoothed", "both"])
def test_ligers_fused_loss_has_the_values_and_gradients_of_torch(
    interpreted: dict[str, Any], precision: str, terms: str
) -> None:
    absolute, relative = TOLERANCE[precision]
    for ours, torchs in interpreted["losses"][f"{precision} {terms}"]:
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(torchs), atol=absolute, rtol=relative)


def test_updates_with_ligers_loss_are_those_of_torchs_to_rounding(interpreted: dict[str, Any]) -> None:
    liger, torchs = interpreted["updates"]["liger"], interpreted["updates"]["torch"]
    assert len(liger) == len(torchs) == 3
    for ours, theirs in zip(liger, torchs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
        assert ours["by_source"] == pytest.approx(theirs["by_source"], rel=2e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-4)
        assert ours["z_loss"] == pytest.approx(theirs["z_loss"], rel=1e-4)


def test_the_output_head_is_not_run_where_the_loss_is_fused(interpreted: dict[str, Any]) -> None:
    assert interpreted["head_calls"] == {"liger": 0, "chunked": 0, "torch": 3}
