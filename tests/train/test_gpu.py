"""On a GPU: Liger trains as torch does, the same run twice gives the same bits, and long rows hold no surprise.

Everything here but the last test needs CUDA and liger-kernel, one of them a second GPU: `pytest -m gpu tests/train`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.groups import BF16

ROOT = Path(__file__).resolve().parents[2]
# (absolute, relative) of losses and of weights after 32 updates: Liger's test/convergence/{fp32,bf16}/test_mini_models
LIGERS = {
    "fp32": {"rate": 1e-4, "loss": (1e-8, 2e-5), "weights": (5e-3, 1e-5)},
    "bf16-mixed": {"rate": 1e-5, "loss": (1e-2, 5e-2), "weights": (1e-2, 1e-2)},
}


def run(out: Path, **asked: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    out.mkdir()
    subprocess.run([sys.executable, "-m", "tests.train.on_gpu", str(out), json.dumps(asked)], cwd=ROOT, check=True)
    return json.loads((out / "facts.json").read_text()), load_file(out / "weights.safetensors")


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_32_updates_with_liger_are_those_of_torch_within_ligers_own_tolerances(
    precision: str, family: str, tmp_path: Path
) -> None:
    bounds = LIGERS[precision]
    asked = {"precision": precision, "rate": bounds["rate"], "family": family}
    liger, ligers = run(tmp_path / "liger", kernels="liger", **asked)
    plain, torchs = run(tmp_path / "torch", kernels="torch", **asked)
    absolute, relative = bounds["loss"]
    for ours, theirs in zip(liger["updates"], plain["updates"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=relative, abs=absolute)
        assert ours["by_source"] == pytest.approx(theirs["by_source"], rel=max(relative, 1e-4), abs=absolute)
    absolute, relative = bounds["weights"]
    for name, weight in torchs.items():
        torch.testing.assert_close(ligers[name], weight, atol=absolute, rtol=relative, msg=name)
    launched = " ".join(liger["ran"]["launched"])
    for kernel in ("_triton_rope", "rms_norm_forward", "swiglu_forward", "liger_cross_entropy_kernel"):
        assert kernel in launched
    assert plain["ran"]["launched"] == {}


@pytest.mark.gpu
@pytest.mark.parametrize("asked", [{"kernels": "liger"}, {"kernels": "torch"}, {"kernels": "auto", "compile": True}])
def test_the_same_run_twice_has_the_same_bits(asked: dict[str, Any], tmp_path: Path) -> None:
    asked = {**asked, "precision": "bf16-mixed", "rate": 1e-3, "updates": 8}
    first, weights = run(tmp_path / "first", **asked)
    second, again = run(tmp_path / "second", **asked)
    assert first["updates"] == second["updates"]
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


@pytest.mark.gpu
@pytest.mark.parametrize("documents", ["joined", "masked"])
def test_a_row_of_65536_tokens_is_torchs(documents: str, tmp_path: Path) -> None:
    """Offsets of 32 bits in a kernel show here, and a mask of the row's square would take 8 GB."""
    asked = {"precision": "bf16-mixed", "rate": 1e-5, "context": 65536, "rows": 1, "updates": 2, "documents": documents}
    liger, _ = run(tmp_path / "liger", kernels="liger", **asked)
    plain, _ = run(tmp_path / "torch", kernels="torch", **asked)
    for ours, theirs in zip(liger["updates"], plain["updates"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=5e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-2)
    assert liger["ran"]["attention"] == ("flex" if documents == "masked" else "joined")
    assert liger["peak_bytes"] < 8 << 30


@pytest.mark.gpu
def test_flex_attention_keeps_documents_apart_as_a_dense_mask_does(tmp_path: Path) -> None:
    """The same updates on the GPU with FlexAttention and on the CPU with a mask."""
    asked = {"kernels": "torch", "precision": "fp32", "rate": 1e-4, "updates": 4, "context": 512}
    gpu, _ = run(tmp_path / "gpu", **asked)
    cpu, _ = run(tmp_path / "cpu", device="cpu", **asked)
    assert (gpu["ran"]["attention"], cpu["ran"]["attention"]) == ("flex", "dense")
    for ours, theirs in zip(gpu["updates"], cpu["updates"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_have_the_losses_of_one_and_resume_each_others_checkpoints(strategy: str, tmp_path: Path) -> None:
    """Over NCCL, in bf16, as a study runs; with a restart on one GPU."""
    losses = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        call = [sys.executable, "-m", "tests.train.on_gpus", str(folder), str(world), strategy if world > 1 else "auto"]
        subprocess.run(call, check=True, timeout=300)
        losses.append(json.loads((folder / "losses.json").read_text()))
    assert losses[1] == pytest.approx(losses[0], rel=BF16)


@pytest.mark.slow
def test_the_worker_of_these_tests_trains_where_there_is_no_gpu(tmp_path: Path) -> None:
    asked = {"device": "cpu", "precision": "fp32", "rate": 1e-3, "context": 64, "updates": 2}
    first, weights = run(tmp_path / "first", kernels="torch", **asked)
    second, again = run(tmp_path / "second", kernels={"fused_linear_cross_entropy": "chunked"}, **asked)
    assert first["updates"][1]["loss"] == pytest.approx(second["updates"][1]["loss"], rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(again[name], weight, atol=1e-4, rtol=1e-3, msg=name)
