"""The moving average of the weights, optimizers over a whole path, and the z-loss in the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.plan.merges import merge_id
from harness.store import states
from harness.store.metrics import read_steps
from harness.study.errors import UserError
from harness.train.average import WeightAverage
from harness.train.merge import merge_state
from harness.train.model import load_model
from harness.train.optimizer import trained_parameters
from tests.train import build
from tests.train.test_optimizer import SCIENCES

BATCH = build.BATCH
END = 12 * BATCH


def _piece(start: int, end: int, optimizer: Mapping[str, Any], stage: str = "stable") -> dict[str, Any]:
    piece = build.piece(start, end, stage)
    piece["science"]["optimizer"] = dict(optimizer)
    return piece


def _reference(decay: float, updates: int, optimizer: Mapping[str, Any] = build.science()["optimizer"]) -> Any:
    """The average after `updates`, in plain PyTorch, of a loop that keeps none."""
    loop = build.loop([_piece(0, END, optimizer)])
    mean = {name: parameter.detach().clone() for name, parameter in trained_parameters(loop.model)}
    for _ in range(updates):
        loop.update()
        for name, parameter in trained_parameters(loop.model):
            mean[name] = decay * mean[name] + (1 - decay) * parameter.detach()
    return mean


def _merge(study: build.StudyFolder, of: str, tokens: int) -> str:
    recipe = {"method": "ema", "of": [of]}
    name = merge_id(recipe)
    segment = {**states.read_segment(study.state(of)), "id": name, "kind": "merge", "recipe": recipe, "parent": of}
    states.write_segment(study.state(name), {**segment, "tokens_from": tokens, "tokens_to": tokens})
    assert merge_state(study.folder, name, {"numerics": build.NUMERICS.record(), "code": {}}) == "merged"
    return name


@pytest.mark.parametrize("name", SCIENCES)
def test_the_merged_state_is_the_average_that_plain_torch_computes(name: str, tmp_path: Path) -> None:
    study = build.StudyFolder(tmp_path)
    optimizer = {**SCIENCES[name], "ema": 0.8}
    (end,) = study.declare([_piece(0, END, optimizer)], [END])
    study.train(end)
    merged = study.state(_merge(study, end, END))
    model = load_model(merged.checkpoint(END) / "model")
    expected = _reference(0.8, 12, SCIENCES[name])
    for part, parameter in trained_parameters(model):
        torch.testing.assert_close(parameter.detach(), expected[part], rtol=1e-5, atol=1e-6)
    done = states.verify_state(merged)
    trained = states.verify_state(study.state(end))
    assert done is not None and trained is not None
    assert (done.tokens, done.step) == (END, 12) and done.weights != trained.weights


@pytest.mark.parametrize("name", SCIENCES)
def test_stopped_cut_and_uncut_paths_end_in_one_state_of_weights_optimizer_and_average(
    name: str, tmp_path: Path
) -> None:
    science = {**SCIENCES[name], "ema": 0.8}
    uncut = build.StudyFolder(tmp_path / "uncut")
    (end,) = uncut.declare([_piece(0, END, science)], [END])
    uncut.train(end)
    cut = build.StudyFolder(tmp_path / "cut")
    first, second = cut.declare([_piece(0, END, science)], [5 * BATCH, END])
    assert cut.train(first, stop_after=2).kind == "stopped"
    for segment in (first, second):
        cut.train(segment)
    assert second == end and "ema.safetensors" in cut.hashes(end)
    assert cut.hashes(end) == uncut.hashes(end)
    merged = _merge(cut, end, END)
    assert _merge(uncut, end, END) == merged
    assert cut.hashes(merged) == uncut.hashes(merged)


def test_an_average_that_begins_in_a_later_stage_begins_at_its_weights(tmp_path: Path) -> None:
    adamw = build.science()["optimizer"]
    study = build.StudyFolder(tmp_path)
    pieces = [_piece(0, 4 * BATCH, adamw), _piece(4 * BATCH, END, {**adamw, "ema": 0.8}, "decay")]
    first, second = study.declare(pieces, [4 * BATCH, END])
    study.train(first)
    study.train(second)
    assert "ema.safetensors" not in study.hashes(first)
    loop = build.loop([_piece(0, END, adamw)])
    for _ in range(4):
        loop.update()
    mean = {name: parameter.detach().clone() for name, parameter in trained_parameters(loop.model)}
    for _ in range(8):
        loop.update()
        for name, parameter in trained_parameters(loop.model):
            mean[name] = 0.8 * mean[name] + 0.2 * parameter.detach()
    for name, saved in load_file(study.state(second).checkpoint(END) / "ema.safetensors").items():
        torch.testing.assert_close(saved, mean[name], rtol=1e-5, atol=1e-6)


def test_an_average_changes_no_weight(tmp_path: Path) -> None:
    with_it, without = (build.StudyFolder(tmp_path / name) for name in ("with", "without"))
    adamw = build.science()["optimizer"]
    hashes = []
    for study, science in ((with_it, {**adamw, "ema": 0.8}), (without, adamw)):
        (end,) = study.declare([_piece(0, END, science)], [END])
        study.train(end)
        hashes.append(study.hashes(end)["model/model.safetensors"])
    assert hashes[0] == hashes[1]


def test_a_broken_update_leaves_the_average_alone() -> None:
    model = build.model()
    average = WeightAverage(model, 0.5)
    before = {name: value.clone() for name, value in average.tensors().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    average.update(torch.tensor(1.0))
    assert all(torch.equal(value, before[name]) for name, value in average.tensors().items())
    average.update(torch.tensor(0.0))
    torch.testing.assert_close(average.tensors()["model.norm.weight"], before["model.norm.weight"] + 0.5)


def test_a_merge_of_weights_without_an_average_is_refused_by_name(tmp_path: Path) -> None:
    study = build.StudyFolder(tmp_path)
    (end,) = study.declare([build.piece(0, 2 * BATCH)], [2 * BATCH])
    study.train(end)
    with pytest.raises(UserError, match="keeps no average"):
        _merge(study, end, 2 * BATCH)


def test_a_stage_that_switches_optimizer_starts_cold_and_one_that_keeps_it_does_not(tmp_path: Path) -> None:
    lion, adamw = SCIENCES["lion"], SCIENCES["adamw"]
    study = build.StudyFolder(tmp_path)
    pieces = [_piece(0, 4 * BATCH, adamw), _piece(4 * BATCH, END, lion, "decay")]
    first, second = study.declare(pieces, [4 * BATCH, END])
    study.train(first)
    assert study.train(second, stop_after=1).kind == "stopped"
    cold = build.loop([_piece(0, END, adamw)])
    for _ in range(4):
        cold.update()
    from harness.train.optimizer import build_optimizer

    cold.optimizer = build_optimizer(cold.model, lion)
    cold.update()
    saved = load_file(study.state(second).checkpoint(5 * BATCH) / "optimizer.safetensors")
    assert {name.split(".")[0] for name in saved} == {"exp_avg"}
    assert study.train(second).kind == "trained", "its own checkpoint is lion's, and is taken up"


def test_the_z_loss_is_trained_on_and_recorded_beside_the_loss(tmp_path: Path) -> None:
    adamw = build.science()["optimizer"]
    rows = {}
    for weight in (0.0, 1e-2):
        study = build.StudyFolder(tmp_path / str(weight))
        (end,) = study.declare([_piece(0, 3 * BATCH, {**adamw, **({"z_loss": weight} if weight else {})})], [3 * BATCH])
        study.train(end)
        rows[weight] = read_steps(study.state(end)).rows
    plain, with_z = rows[0.0], rows[1e-2]
    assert with_z[0]["loss"] == plain[0]["loss"], "the first loss is that of the same weights"
    assert with_z[-1]["loss"] != plain[-1]["loss"]
    assert "z_loss" not in plain[0]
    # At first the logits are near 0, so that log Z is near log of the vocabulary.
    assert with_z[0]["z_loss"] == pytest.approx(1e-2 * 17.3, rel=0.05)  # log(64)^2 = 17.30


def test_the_z_loss_does_not_depend_on_the_micro_batch() -> None:
    science = {**build.science()["optimizer"], "z_loss": 1e-2}
    figures = []
    for micro in (None, build.LENGTH):
        from harness.train.numerics import Numerics

        loop = build.loop([_piece(0, END, science)], Numerics.resolve("cpu", 1, micro))
        loop.update()
        figures.append(loop.look()[0])
    assert figures[0].z_loss == pytest.approx(figures[1].z_loss, rel=1e-5)
    assert figures[0].loss == pytest.approx(figures[1].loss, rel=1e-5)
    assert figures[0].grad_norm == pytest.approx(figures[1].grad_norm, rel=1e-4)
