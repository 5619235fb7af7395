"""The loss over chunks of tokens is the loss over all of them, for every family with a linear head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from harness.train import fused
from harness.train.fused import fused_losses
from harness.train.kernels import Kernels
from harness.train.loss import LossTerms, token_losses_and_squares
from tests.train import build

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 10, 8, 50
TERMS = [LossTerms(), LossTerms(z_loss=1e-2), LossTerms(label_smoothing=0.1), LossTerms(1e-2, 0.1)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens a chunk: the last is shorter, none ends with a row."""
    monkeypatch.setitem(fused.CHUNK_BYTES, "cpu", 7 * 4 * VOCABULARY)


def _inputs(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=draw).to(dtype).requires_grad_()
    torch.manual_seed(3)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw)
    labels[0, 2] = labels[1, :] = -100
    return hidden, head, labels


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_chunks_have_the_losses_and_gradients_of_whole_logits(
    terms: LossTerms, bias: bool, dtype: torch.dtype, rounding: float
) -> None:
    hidden, head, labels = _inputs(dtype, bias)
    count = int((labels != -100).sum())
    objective, losses, squares = fused_losses("chunked", hidden, head, labels, terms, count)
    (3.0 * objective).backward()  # whoever scales the objective scales its gradients
    ours = [hidden.grad, head.weight.grad, *([head.bias.grad] if bias else [])]

    plain, twin, _ = _inputs(dtype, bias)
    logits = torch.nn.functional.linear(
        plain, twin.weight.to(dtype), None if twin.bias is None else twin.bias.to(dtype)
    )
    each, each_square = token_losses_and_squares(logits, labels, terms.label_smoothing)
    expected = (each.sum() + terms.z_loss * each_square.sum()) / count
    (3.0 * expected).backward()
    theirs = [plain.grad, twin.weight.grad, *([twin.bias.grad] if bias else [])]
    torch.testing.assert_close(losses, each.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares, each_square.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm() / other.norm()) < rounding


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "gpt_neox", "gpt2"])
def test_updates_with_the_chunked_loss_are_those_with_logits_to_rounding(family: str) -> None:
    def trained(loss: Any) -> list[Any]:
        model = build.model(family)
        numerics = replace(build.NUMERICS, kernels=Kernels(fused_linear_cross_entropy=loss))
        # At a larger rate a small OLMo 2 is chaotic: rounding grows a hundredfold in a few updates.
        loop = build.loop([build.piece(0, 8 * build.BATCH, lr=1e-3, optimizer={"z_loss": 1e-3})], numerics, model)
        for _ in range(8):
            loop.update()
        return loop.look()

    for chunked, whole in zip(trained("chunked"), trained("torch"), strict=True):
        assert chunked.loss == pytest.approx(whole.loss, rel=2e-5)
        assert chunked.grad_norm == pytest.approx(whole.grad_norm, rel=2e-4)
        assert chunked.z_loss == pytest.approx(whole.z_loss, rel=1e-4)
        assert chunked.loss_by_source == pytest.approx(whole.loss_by_source, rel=2e-5)
