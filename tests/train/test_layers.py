"""Recomputed activations and compiled layers: the same weights, the same names in a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.study.errors import UserError
from harness.train.layers import decoder_layers, prepare_layers
from harness.train.numerics import Numerics
from tests.train import build


def _trained(
    numerics: Numerics, family: str = "llama", updates: int = 3
) -> tuple[list[float], dict[str, torch.Tensor]]:
    model = build.model(family)
    prepare_layers(model, numerics)
    loop = build.loop([build.piece(0, updates * build.BATCH)], numerics, model)
    for _ in range(updates):
        loop.update()
    return [update.loss for update in loop.look()], dict(model.state_dict())


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputed_activations_give_the_same_bits_and_names(mode: Any, family: str) -> None:
    losses, weights = _trained(build.NUMERICS, family)
    again, same = _trained(replace(build.NUMERICS, activation_checkpointing=mode), family)
    assert again == losses
    assert list(same) == list(weights) and all(torch.equal(same[name], weight) for name, weight in weights.items())


class _Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[operator.name()] = self.calls.get(operator.name(), 0) + 1
        return operator(*args, **(kwargs or {}))


def _calls(mode: Any) -> tuple[int, int]:
    """Matrix products and activations (silu) of one forward and backward."""
    model = build.model()
    prepare_layers(model, replace(build.NUMERICS, activation_checkpointing=mode))
    with _Counted() as counted:
        model(input_ids=torch.ones(1, 8, dtype=torch.long), use_cache=False).logits.sum().backward()
    return counted.calls["aten::mm"], counted.calls["aten::silu"]


def test_full_recomputes_everything_and_selective_no_matrix_product() -> None:
    (products, silus), full, selective = _calls("off"), _calls("full"), _calls("selective")
    assert full[0] > products and full[1] == 2 * silus
    assert selective == (products, 2 * silus)


def test_compiled_layers_train_to_rounding_and_keep_their_names() -> None:
    losses, weights = _trained(build.NUMERICS, updates=2)
    compiled, same = _trained(replace(build.NUMERICS, compile=True), updates=2)
    assert compiled == pytest.approx(losses, rel=1e-5)
    assert list(same) == list(weights)


def test_layers_are_compiled_and_not_only_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(options["dynamic"]))
    model = build.model()
    prepare_layers(model, replace(build.NUMERICS, compile=True))
    assert compiled == [False, False], "each layer, with static shapes"


def test_a_model_without_layers_is_refused() -> None:
    model = build.model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UserError, match="0 layers are known where its configuration says 2"):
        decoder_layers(model)
