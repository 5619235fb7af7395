"""Optimizers: which parameters decay, how gradients are clipped, and a state that survives a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.study.errors import UserError
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
SCIENCES: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "lion": {"name": "lion", "betas": [0.9, 0.99], "weight_decay": 0.1, "clip": 1.0},
    "muon": {**ADAMW, "name": "muon", "momentum": 0.95},
    "sgd": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1, "clip": 1.0},
}
every_optimizer = pytest.mark.parametrize("name", SCIENCES)


def _with_gradients(model: Any, scale: float = 1.0, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=draw)


def _step(model: Any, optimizer: torch.optim.Optimizer, clip: float | None = 1.0, broken: float = 0.0) -> None:
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


@every_optimizer
def test_a_broken_update_changes_neither_weights_nor_state(name: str) -> None:
    model = build.model()
    optimizer = build_optimizer(model, SCIENCES[name])
    _with_gradients(model)
    _step(model, optimizer)
    weights = {part: value.clone() for part, value in model.state_dict().items()}
    state = {part: value.clone() for part, value in optimizer_tensors(model, optimizer).items()}
    _with_gradients(model, float("nan"))
    _step(model, optimizer, broken=1.0)
    assert all(torch.equal(value, weights[part]) for part, value in model.state_dict().items())
    assert all(torch.equal(value, state[part]) for part, value in optimizer_tensors(model, optimizer).items())


@every_optimizer
def test_the_state_comes_back_from_a_file_to_the_bit_and_aligned(name: str, tmp_path: Path) -> None:
    model = build.model()
    optimizer = build_optimizer(model, SCIENCES[name])
    _with_gradients(model)
    _step(model, optimizer)
    saved = optimizer_tensors(model, optimizer)
    save_file(saved, tmp_path / "a.safetensors")
    again = build_optimizer(model, SCIENCES[name])
    load_optimizer_tensors(model, again, load_file(tmp_path / "a.safetensors"))
    loaded = optimizer_tensors(model, again)
    assert saved.keys() == loaded.keys() and len(saved) >= len(trained_parameters(model))
    assert all(torch.equal(saved[part], loaded[part]) for part in saved)
    assert all(value.data_ptr() % 64 == 0 for part, value in loaded.items() if not part.startswith("step"))
    save_file(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@every_optimizer
def test_a_parameter_that_never_had_a_gradient_comes_back_without_a_state(
    name: str,
) -> None:
    unused = next(part for part, weight in trained_parameters(build.model()) if "mlp" in part and weight.dim() == 2)
    model = build.model()
    optimizer = build_optimizer(model, SCIENCES[name])
    _with_gradients(model)
    dict(trained_parameters(model))[unused].grad = None
    _step(model, optimizer)
    state = {part: value.clone() for part, value in optimizer_tensors(model, optimizer).items()}
    assert state and not any(part.endswith(unused) for part in state)
    again = build.model()
    again.load_state_dict(model.state_dict())
    restored = build_optimizer(again, SCIENCES[name])
    load_optimizer_tensors(again, restored, state)
    assert optimizer_tensors(again, restored).keys() == state.keys()
    for its, of in ((again, restored), (model, optimizer)):
        _with_gradients(its, seed=9)
        _step(its, of)
    assert all(torch.equal(value, again.state_dict()[part]) for part, value in model.state_dict().items())


def test_a_state_of_another_model_is_refused() -> None:
    model, other = build.model(), build.model(hidden_size=32)
    optimizer = build_optimizer(other, ADAMW)
    _with_gradients(other)
    _step(other, optimizer)
    with pytest.raises(UserError, match=r"is .* not"):
        load_optimizer_tensors(model, build_optimizer(model, ADAMW), optimizer_tensors(other, optimizer))
    partial = dict(list(optimizer_tensors(other, optimizer).items())[:-1])
    with pytest.raises(UserError, match="1 missing"):
        load_optimizer_tensors(other, build_optimizer(other, ADAMW), partial)


def test_a_state_of_another_optimizer_is_refused() -> None:
    model = build.model()
    optimizer = build_optimizer(model, SCIENCES["lion"])
    _with_gradients(model)
    _step(model, optimizer)
    with pytest.raises(UserError, match="not one of AdamW"):
        load_optimizer_tensors(model, build_optimizer(model, ADAMW), optimizer_tensors(model, optimizer))


def _trained_beside(name: str, reference: Any, clip: float = 1.0) -> tuple[Any, Any]:
    """A model after five updates by ours, and one after five by `reference(parameters)`, clipped by torch."""
    ours, theirs = build.model(), build.model()
    optimizer = build_optimizer(ours, {**SCIENCES[name], "clip": clip})
    optimizers = reference(theirs)
    for step, scale in enumerate((3.0, 1e-3, 5.0, 1e-4, 2.0)):  # some are clipped and some are not
        _with_gradients(ours, scale, step)
        _with_gradients(theirs, scale, step)
        _step(ours, optimizer, clip)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for one in optimizers:
            one.step()
    return ours, theirs


def test_muon_is_the_muon_of_torch_for_matrices_of_layers_and_adamw_for_the_rest() -> None:
    def reference(model: Any) -> list[Any]:
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
        decayed = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." not in name]
        plain = [p for p in model.parameters() if p.ndim < 2]
        muon = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        return [muon, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)]

    ours, theirs = _trained_beside("muon", reference)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4, msg=name)  # bfloat16 rounds within


def test_sgd_is_that_of_torch_with_its_decay_decoupled() -> None:
    class Decoupled(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"]:
                    parameter.mul_(1 - 1e-2 * (0.1 if parameter.ndim >= 2 else 0.0))
            super().step()

    ours, theirs = _trained_beside("sgd", lambda model: [Decoupled(model.parameters(), lr=1e-2, momentum=0.9)])
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_lion_is_the_algorithm_of_its_paper() -> None:
    """Algorithm 2 of 2302.06675, number by number, for one weight whose gradients are 3, -1 and 0.5."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(layer, {**SCIENCES["lion"], "clip": None})
    weight, momentum = 2.0, 0.0
    for gradient in (3.0, -1.0, 0.5):
        layer.weight.grad = torch.full((1, 1), gradient)
        update(optimizer, 1e-2, None, torch.tensor(0.0), torch.tensor(0.0))
        sign = math.copysign(1.0, 0.9 * momentum + 0.1 * gradient)
        weight -= 1e-2 * (sign + 0.1 * weight)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert layer.weight.item() == pytest.approx(weight, rel=1e-6)
    state = optimizer_tensors(layer, optimizer)
    assert state["exp_avg.weight"].item() == pytest.approx(momentum, rel=1e-6)


@every_optimizer
def test_embeddings_decay_unless_they_are_left_out(name: str) -> None:
    for leave_out in (False, True):
        model = build.model(tie_word_embeddings=False)
        science = {**SCIENCES[name], **({"decay_embeddings": False} if leave_out else {})}
        optimizer = build_optimizer(model, science)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        by_name = {part: decays[id(parameter)] for part, parameter in model.named_parameters()}
        assert by_name["model.embed_tokens.weight"] == (0.0 if leave_out else 0.1)
        assert by_name["lm_head.weight"] == 0.1
        assert {decay for part, decay in by_name.items() if "norm" in part} == {0.0}


@every_optimizer
def test_no_update_waits_for_the_device(name: str) -> None:
    """On a device whose values cannot be read (meta), an update raises where the host would wait for one."""
    model = build.model().to("meta")
    if name in ("adamw", "muon"):
        pytest.skip("torch's fused kernel does not run on meta; it takes found_inf where it is")
    optimizer = build_optimizer(model, SCIENCES[name])
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    update(optimizer, 1e-2, 1.0, torch.empty((), device="meta"), torch.empty((), device="meta"))
