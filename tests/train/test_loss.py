"""The loss of a batch is a mean over its labels, however the batch is cut into micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from harness.train.loss import token_losses, token_losses_and_squares
from tests.train import build


def _logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=draw) * 4
    labels = torch.randint(0, 11, (3, 7), generator=draw)
    labels[0, 2:5] = -100
    return logits, labels


def test_loss_and_gradient_equal_those_of_torch() -> None:
    logits, labels = _logits_and_labels()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = token_losses(ours, labels)
    expected = functional.cross_entropy(theirs.view(-1, 11), labels.view(-1), reduction="none").view(3, 7)
    weights = torch.linspace(0.5, 2.0, 21).view(3, 7)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    assert ours.grad is not None and bool((ours.grad[0, 2:5] == 0).all())


def test_a_label_of_vanishing_probability_has_a_finite_loss() -> None:
    logits = torch.tensor([[0.0, 500.0]], requires_grad=True)
    loss = token_losses(logits, torch.tensor([0])).sum()
    loss.backward()
    assert loss.item() == 500.0
    assert logits.grad is not None and logits.grad.tolist() == [[-1.0, 1.0]]


def test_a_second_backward_fails_instead_of_being_wrong() -> None:
    logits, labels = _logits_and_labels()
    loss = token_losses(logits.requires_grad_(), labels).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        loss.backward()


def test_bf16_logits_give_an_fp32_loss_and_a_bf16_gradient() -> None:
    logits, labels = _logits_and_labels()
    half = logits.bfloat16().requires_grad_()
    losses = token_losses(half, labels)
    losses.sum().backward()
    expected = functional.cross_entropy(half.detach().float().view(-1, 11), labels.view(-1), reduction="none")
    torch.testing.assert_close(losses.flatten(), expected, rtol=1e-6, atol=1e-6)
    assert losses.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16


def _gradients(rows: int) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of one batch of 8 rows, `rows` at a time, and its loss."""
    pieces = [build.piece(0, 8 * build.LENGTH, batch_tokens=8 * build.LENGTH)]
    numerics = replace(build.NUMERICS, micro_batch=rows * build.LENGTH)
    loop = build.loop(pieces, numerics)
    batch = loop.feed.next()
    labels = sum(batch.labels)
    forwards: list[int] = []
    loop.forward.register_forward_hook(lambda module, given, losses: forwards.append(len(given[0].source)))
    figures = loop._accumulate_gradients(batch, pieces[0]["science"])
    assert forwards == [rows] * (8 // rows)
    return build.gradients(loop.model), float(figures[:-1].sum()) / labels


def test_eight_micro_batches_of_one_row_give_the_gradients_of_one_of_eight() -> None:
    (one_by_one, loss), (whole, whole_loss) = _gradients(1), _gradients(8)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert one_by_one.keys() == whole.keys()
    for name, gradient in whole.items():
        difference = (one_by_one[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-6, f"{name}: {difference}"


def test_the_mean_of_micro_batch_means_is_another_loss() -> None:
    """Why sums are accumulated: rows differ in how many labels they have, most of all with masked documents."""
    pieces = [build.piece(0, 8 * build.LENGTH, batch_tokens=8 * build.LENGTH)]
    loop = build.loop(pieces)
    rows = loop.feed.next().rows
    whole, _ = _gradients(8)
    for row in range(8):
        logits = loop.forward.logits(rows.input_ids[row : row + 1], rows.position_ids[row : row + 1])
        labels = rows.labels[row : row + 1]
        (functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) / 8).backward()
    naive = build.gradients(loop.model)
    differences = [float((naive[name] - whole[name]).norm() / whole[name].norm()) for name in whole]
    assert max(differences) > 1e-2


def test_the_z_loss_and_its_gradient_are_those_of_autograd() -> None:
    """c mean (log Z)^2 beside cross entropy, written with torch's own functions."""
    draw = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(2, 6, 11, generator=draw)
    labels = torch.randint(0, 11, (2, 6), generator=draw)
    labels[0, 2] = labels[1, 5] = -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().double().requires_grad_()
    losses, squares = token_losses_and_squares(ours, labels)
    (losses.sum() / 10 + 0.05 * squares.sum() / 10).backward()
    trained = labels != -100
    expected = torch.logsumexp(theirs, -1)[trained].square()
    entropy = torch.nn.functional.cross_entropy(theirs[trained], labels[trained], reduction="sum")
    (entropy / 10 + 0.05 * expected.sum() / 10).backward()
    torch.testing.assert_close(squares[trained], expected.float())
    assert squares[~trained].tolist() == [0.0, 0.0]
    assert torch.equal(losses, token_losses(logits, labels)), "the loss that is reported stays cross entropy"
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-5, atol=1e-7)


def test_the_z_loss_by_hand() -> None:
    """Logits 0 and log 3: Z = 4, p = (1/4, 3/4); d (log Z)^2 / d logits = 2 log 4 p."""
    logits = torch.tensor([[[0.0, math.log(3.0)]]], requires_grad=True)
    _, squares = token_losses_and_squares(logits, torch.tensor([[1]]))
    squares.sum().backward()
    assert squares.item() == pytest.approx(math.log(4.0) ** 2, rel=1e-6)
    assert logits.grad.flatten().tolist() == pytest.approx([0.5 * math.log(4.0), 1.5 * math.log(4.0)], rel=1e-6)


@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_label_smoothing_and_its_gradient_are_torchs_own(z_loss: float) -> None:
    """cross_entropy(label_smoothing=e) in double precision, with and without the z-loss beside it."""
    draw = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(2, 6, 11, generator=draw)
    labels = torch.randint(0, 11, (2, 6), generator=draw)
    labels[0, 2] = labels[1, 5] = -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().double().requires_grad_()
    trained = labels != -100
    if z_loss:
        losses, squares = token_losses_and_squares(ours, labels, 0.1)
        (losses.sum() + z_loss * squares.sum()).backward()
    else:
        losses = token_losses(ours, labels, 0.1)
        losses.sum().backward()
    expected = functional.cross_entropy(theirs[trained], labels[trained], reduction="none", label_smoothing=0.1)
    (expected.sum() + z_loss * torch.logsumexp(theirs, -1)[trained].square().sum()).backward()
    torch.testing.assert_close(losses[trained], expected.detach().float(), rtol=1e-6, atol=1e-6)
    assert losses[~trained].tolist() == [0.0, 0.0]
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-5, atol=1e-6)
