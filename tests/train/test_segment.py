"""What one segment does: carry the optimizer, follow the schedule, stop at divergence, export what it trained."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness.data.loader import Loader
from harness.plan.schedule import rate
from harness.store import states
from harness.store.atomic import read_json_lines
from harness.store.checkpoints import verify
from harness.store.metrics import read_steps
from harness.study.errors import UserError
from harness.train import numerics
from harness.train.checkpoint import OPTIMIZER
from harness.train.loop import Loop
from harness.train.ranks import ALONE
from harness.train.segment import TrainSettings, prepare, train_segment
from harness.train.start import Start
from tests.train import build
from tests.train.build import BATCH, LENGTH, StudyFolder, piece

ROPE = {"type": "default", "theta": 50000.0}


def _kinds(study: StudyFolder, name: str) -> list[str]:
    return [event["kind"] for event in read_json_lines(study.state(name).events)]


def _weights(study: StudyFolder, name: str, tokens: int) -> dict[str, torch.Tensor]:

    return load_file(study.state(name).checkpoint(tokens) / "model" / "model.safetensors")


def test_the_first_update_after_a_stage_switch_is_that_of_an_uncut_run(tmp_path: Path) -> None:
    """And a cold optimizer would show: its first update is another one."""
    study = StudyFolder(tmp_path)
    pieces = [piece(0, 10 * BATCH)]
    (uncut,) = study.declare(pieces, [7 * BATCH])
    study.train(uncut)
    expected = _weights(study, uncut, 7 * BATCH)
    first, _ = study.declare(pieces, [6 * BATCH, 7 * BATCH])
    study.train(first)
    before = study.state(first).checkpoint(6 * BATCH)
    switched = StudyFolder(tmp_path / "switched")
    names = switched.declare([piece(0, 6 * BATCH), piece(6 * BATCH, 7 * BATCH, "decay")], [6 * BATCH, 7 * BATCH])
    for name in names:
        switched.train(name)
    after = _weights(switched, names[1], 7 * BATCH)
    assert all(torch.equal(after[name], expected[name]) for name in expected)

    segment = states.read_segment(switched.state(names[1]))
    for carried in (True, False):
        loop: Loop = prepare(
            switched.folder, segment, Start(verify(before), own=False), build.NUMERICS, ALONE, ExitStack()
        )
        if not carried:
            loop.optimizer.state.clear()
        loop.update()
        same = all(torch.equal(p, expected[n]) for n, p in loop.model.named_parameters())
        assert same is carried


def test_metrics_say_what_each_update_did(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    decay = {"shape": "cosine", "from": 1e-2, "to": 1e-3, "start": 3 * BATCH, "end": 8 * BATCH}
    pieces = [piece(0, 3 * BATCH), piece(3 * BATCH, 8 * BATCH, lr=decay)]
    (name,) = study.declare(pieces, [8 * BATCH])
    seen: list[dict[str, Any]] = []

    train_segment(study.folder, name, TrainSettings(build.NUMERICS), lambda fields: seen.append(dict(fields)))
    rows = read_steps(study.state(name)).rows
    assert [row["tokens"] for row in rows] == [BATCH * n for n in range(1, 9)]
    assert [row["step"] for row in rows] == list(range(1, 9))
    expected = [rate(pieces[0 if t < 3 else 1]["science"]["lr"], t * BATCH, BATCH) for t in range(8)]
    assert [row["lr"] for row in rows] == expected
    for row in rows:
        assert set(row["loss_by_source"]) == {"words", "sums"} and 0 < row["labels"] <= BATCH
        low, high = sorted(row["loss_by_source"].values())
        assert low - 1e-6 <= row["loss"] <= high + 1e-6
        assert row["grad_norm"] > 0 and row["flops"] > 0 and row["tokens_per_second"] > 0
    assert math.isclose(rows[0]["loss"], math.log(build.VOCABULARY), rel_tol=0.05)
    assert seen[-1]["tokens"] == seen[-1]["tokens_to"] == 8 * BATCH and seen[-1]["segment"] == name


def test_losses_per_source_weigh_up_to_the_loss() -> None:
    loop = build.loop([piece(0, BATCH)])
    loader = Loader(loop.pieces, build.token_sources())
    batch = loader.next()
    loop.update()
    (update,) = loop.look()
    counts = {
        name: int((batch.labels[batch.source == index] != -100).sum()) for index, name in enumerate(loader.source_names)
    }
    weighed = sum(counts[name] * loss for name, loss in update.loss_by_source.items()) / sum(counts.values())
    assert update.loss == pytest.approx(weighed, rel=1e-6) and update.labels == sum(counts.values())


def test_a_run_that_blows_up_is_diverged_and_leaves_no_later_checkpoint(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    pieces = [piece(0, 5 * BATCH), piece(5 * BATCH, 12 * BATCH, lr=1e38)]
    (name,) = study.declare(pieces, [12 * BATCH])
    outcome = study.train(name, checkpoint_every=2 * BATCH, keep="all")
    assert outcome.kind == "diverged" and outcome.tokens == 6 * BATCH and outcome.steps == 6
    done = states.read_done(study.state(name))
    assert done is not None and done.outcome == "diverged" and done.step == 6 and done.checkpoint is None
    assert "diverged" in _kinds(study, name) and "finished" not in _kinds(study, name)
    assert max(study.state(name).checkpoint_tokens()) == 6 * BATCH
    broken = read_json_lines(study.state(name).attempt(0) / "metrics.jsonl")[-1]
    assert not math.isfinite(broken["loss"]) or not math.isfinite(broken["grad_norm"])
    assert study.train(name).kind == "diverged" and len(study.state(name).attempt_numbers()) == 1


@pytest.mark.parametrize("look_every", [1, 4])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(
    look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the figures are fetched only every few updates, as on an accelerator."""
    monkeypatch.setattr(numerics, "LOOK_EVERY_ON_ACCELERATOR", look_every)
    loop = build.loop([piece(0, 20 * BATCH)])
    for _ in range(3):
        loop.update()
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    poisoned = loop.model.model.norm.register_forward_hook(lambda *_: torch.full((4, LENGTH, 16), float("nan")))
    for _ in range(look_every):
        loop.update()
    poisoned.remove()
    loop.update()  # its own gradients are finite, but the run is over
    updates = loop.look()
    assert [update.finite for update in updates] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())


def test_updates_may_be_looked_at_late_without_changing_them() -> None:
    at_once, late = build.loop([piece(0, 20 * BATCH)]), build.loop([piece(0, 20 * BATCH)])
    seen = []
    for _ in range(6):
        at_once.update()
        seen += at_once.look()
        late.update()
    assert late.unseen == 6 and late.look() == seen and late.unseen == 0


@pytest.mark.parametrize("rope", [{"type": "base"}, ROPE])
def test_the_exported_folder_is_the_trained_model_in_plain_transformers(rope: dict[str, Any], tmp_path: Path) -> None:

    study = StudyFolder(tmp_path)
    context = {"length": 128, "rope": rope}
    pieces = [piece(0, 4 * BATCH), piece(4 * BATCH, 4 * BATCH + 512, "long", context=context, batch_tokens=256)]
    names = study.declare(pieces, [4 * BATCH, 4 * BATCH + 512])
    for name in names:
        study.train(name)
    start = Start(verify(study.state(names[0]).checkpoint(4 * BATCH)), own=False)
    loop = prepare(study.folder, states.read_segment(study.state(names[1])), start, build.NUMERICS, ALONE, ExitStack())
    loop.update()
    loop.update()
    folder = study.state(names[1]).checkpoint(4 * BATCH + 512) / "model"
    exported = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, build.VOCABULARY, (2, 100), generator=torch.Generator().manual_seed(1))
    assert torch.equal(exported(input_ids=ids).logits, loop.model(input_ids=ids).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == rope.get("theta", 10000.0)
    assert config["max_position_embeddings"] == 128
    assert (folder / "tokenizer.json").exists() and (folder / "tokenizer_config.json").exists()


def test_theta_goes_back_to_the_base_s_when_a_later_stage_says_base(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    pieces = [piece(0, 2 * BATCH, context={"rope": ROPE}), piece(2 * BATCH, 4 * BATCH, "back")]
    names = study.declare(pieces, [2 * BATCH, 4 * BATCH])
    thetas = []
    for name, tokens in zip(names, (2 * BATCH, 4 * BATCH), strict=True):
        study.train(name)
        config = json.loads((study.state(name).checkpoint(tokens) / "model" / "config.json").read_text())
        thetas.append(config["rope_parameters"]["rope_theta"])
    assert thetas == [50000.0, 10000.0]


def test_weights_are_fp32_under_bf16_and_the_arithmetic_is_not(tmp_path: Path) -> None:
    weights = {}
    for precision in ("fp32", "bf16-mixed"):
        study = StudyFolder(tmp_path / precision)
        (name,) = study.declare([piece(0, 4 * BATCH, precision=precision)], [4 * BATCH])
        study.train(name)
        weights[precision] = _weights(study, name, 4 * BATCH)
        assert {tensor.dtype for tensor in weights[precision].values()} == {torch.float32}
    differences = [(weights["fp32"][n] - weights["bf16-mixed"][n]).abs().max() for n in weights["fp32"]]
    assert 0 < max(differences) < 0.1


def test_every_setting_of_the_optimizer_changes_the_weights(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "none": {},
        "betas": {"betas": [0.8, 0.95]},
        "second beta": {"betas": [0.9, 0.99]},
        "eps": {"eps": 1e-3},
        "weight_decay": {"weight_decay": 0.0},
        "clip": {"clip": 0.01},
        "no clip": {"clip": None},
    }
    found = set()
    for change in changes.values():
        loop = build.loop([piece(0, 4 * BATCH, optimizer={"clip": 0.1, **change})])
        for _ in range(3):
            loop.update()
        found.add(float(sum(p.detach().double().abs().sum() for p in loop.model.parameters())))
    assert len(found) == len(changes)


def test_a_stop_after_some_steps_leaves_a_checkpoint(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 6 * BATCH)], [6 * BATCH])
    outcome = study.train(name, stop_after=2)
    assert (outcome.kind, outcome.tokens, outcome.steps) == ("stopped", 2 * BATCH, 2)
    assert study.state(name).checkpoint_tokens() == [2 * BATCH]
    assert study.train(name).steps == 4


def test_a_micro_batch_shorter_than_a_row_is_refused(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 2 * BATCH)], [2 * BATCH])
    with pytest.raises(UserError, match=r"launch\.micro_batch: 8.*at least 16"):
        study.train(name, replace(build.NUMERICS, micro_batch=8))


def test_a_segment_in_which_the_context_changes_is_a_defect(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    pieces = [piece(0, 2 * BATCH), piece(2 * BATCH, 4 * BATCH, context={"length": 32})]
    (name,) = study.declare(pieces, [4 * BATCH])
    with pytest.raises(ValueError, match="`context` changes inside it"):
        study.train(name)


def test_a_base_without_optimizer_state_starts_cold(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    assert not (study.state(study.base).checkpoint(0) / OPTIMIZER).exists()
    (name,) = study.declare([piece(0, BATCH)], [BATCH])
    assert study.train(name).kind == "trained"
    assert (study.state(name).checkpoint(BATCH) / OPTIMIZER).exists()


def test_checkpoints_at_multiples_and_the_last_are_kept_and_others_are_not(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 7 * BATCH)], [7 * BATCH])
    study.train(name, checkpoint_every=BATCH, keep=3 * BATCH)
    assert study.state(name).checkpoint_tokens() == [3 * BATCH, 6 * BATCH, 7 * BATCH]


def test_kept_multiples_are_written_without_other_checkpoints_and_at_the_first_update_past_them(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 6 * BATCH)], [6 * BATCH])
    study.train(name, keep=2 * BATCH + BATCH // 2, stop_after=4)
    study.train(name, keep=2 * BATCH + BATCH // 2)
    assert study.state(name).checkpoint_tokens() == [3 * BATCH, 5 * BATCH, 6 * BATCH]
    assert verify(study.state(name).checkpoint(3 * BATCH)).tokens == 3 * BATCH
