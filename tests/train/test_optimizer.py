"""AdamW: which parameters decay, how gradients are clipped, and a state that survives a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.train.optimizer import (
    build_optimizer,
    gradient_norm,
    load_optimizer_tensors,
    optimizer_tensors,
    trained_parameters,
    update,
)
from tests.train import build

ADAMW = build.science()["optimizer"]


def _with_gradients(model: Any, scale: float = 1.0, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=draw)


def _step(model: Any, optimizer: torch.optim.AdamW, clip: float | None = 1.0, broken: float = 0.0) -> None:
    parameters = [parameter for _, parameter in trained_parameters(model)]
    update(optimizer, 1e-2, clip, gradient_norm(parameters), torch.tensor(broken))


def test_only_matrices_decay() -> None:
    model = build.model("gpt2")
    optimizer = build_optimizer(model, ADAMW)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    grouped = sum(len(group["params"]) for group in optimizer.param_groups)
    assert grouped == len(list(model.parameters()))


def test_an_update_is_clip_grad_norm_and_adamw_of_torch() -> None:
    ours, theirs = build.model(), build.model()
    optimizer = build_optimizer(ours, ADAMW)
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    plain = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step, scale in enumerate((3.0, 1e-4, 5.0)):  # clipped, not clipped, clipped
        _with_gradients(ours, scale, step)
        _with_gradients(theirs, scale, step)
        _step(ours, optimizer)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_clipping_changes_the_moments_and_no_clip_leaves_them() -> None:
    moments = {}
    for clip in (1e-3, None):
        model = build.model()
        optimizer = build_optimizer(model, ADAMW)
        _with_gradients(model)
        _step(model, optimizer, clip)
        moments[clip] = optimizer_tensors(model, optimizer)["exp_avg.model.norm.weight"].norm()
    assert moments[1e-3] < 1e-3 < moments[None]


def test_a_broken_update_changes_neither_weights_nor_state() -> None:
    model = build.model()
    optimizer = build_optimizer(model, ADAMW)
    _with_gradients(model)
    _step(model, optimizer)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in optimizer_tensors(model, optimizer).items()}
    _with_gradients(model, float("nan"))
    _step(model, optimizer, broken=1.0)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, state[name]) for name, value in optimizer_tensors(model, optimizer).items())


def test_the_state_comes_back_from_a_file_to_the_bit_and_aligned(tmp_path: Path) -> None:
    model = build.model()
    optimizer = build_optimizer(model, ADAMW)
    _with_gradients(model)
    _step(model, optimizer)
    saved = optimizer_tensors(model, optimizer)
    save_file(saved, tmp_path / "a.safetensors")
    again = build_optimizer(model, ADAMW)
    load_optimizer_tensors(model, again, load_file(tmp_path / "a.safetensors"))
    loaded = optimizer_tensors(model, again)
    assert saved.keys() == loaded.keys() and len(saved) == 3 * len(trained_parameters(model))
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert all(value.data_ptr() % 64 == 0 for name, value in loaded.items() if not name.startswith("step"))
    save_file(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_state_of_another_model_is_refused() -> None:
    model, other = build.model(), build.model(hidden_size=32)
    optimizer = build_optimizer(other, ADAMW)
    _with_gradients(other)
    _step(other, optimizer)
    with pytest.raises(ValueError, match=r"is .* not"):
        load_optimizer_tensors(model, build_optimizer(model, ADAMW), optimizer_tensors(other, optimizer))
    partial = dict(list(optimizer_tensors(other, optimizer).items())[:-1])
    with pytest.raises(ValueError, match="1 missing"):
        load_optimizer_tensors(other, build_optimizer(other, ADAMW), partial)
