"""What crosses from one stage into the next is what was declared, and is on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.store.atomic import read_json_lines
from harness.train.loop import Loop
from harness.train.optimizer import build_optimizer, optimizer_tensors
from tests.train import build
from tests.train.build import BATCH, StudyFolder, piece
from tests.train.test_optimizer import SCIENCES

FIRST, SECOND, END = 5 * BATCH, 8 * BATCH, 12 * BATCH


def path(*cold: int | None, optimizer: str = "adamw") -> list[dict[str, Any]]:
    """Three stages alike; `cold`: for each where its optimizer's state began."""
    ends = (FIRST, SECOND, END)
    pieces = []
    for name, start, end, begun in zip(("stable", "decay", "long"), (0, *ends), ends, (None, *cold), strict=False):
        one = piece(start, end, name, **({} if begun is None else {"optimizer_from": begun}))
        one["science"]["optimizer"] = SCIENCES[optimizer]
        pieces.append(one)
    return pieces


def reference(cold: set[int], steps: int, optimizer: str = "adamw") -> Loop:
    """One loop in memory, whose optimizer is a new one where `cold` says so: what a stage switch must be."""
    loop = build.loop([{**path(optimizer=optimizer)[0], "end": END}])
    for _ in range(steps):
        if loop.tokens in cold:
            loop.optimizer = build_optimizer(loop.model, SCIENCES[optimizer])
        loop.update()
    return loop


def events(study: StudyFolder, name: str) -> list[dict[str, Any]]:
    found = [event for event in read_json_lines(study.state(name).events) if event["kind"] == "stage_switched"]
    return [{key: value for key, value in event.items() if key not in ("time", "attempt", "kind")} for event in found]


@pytest.mark.parametrize("optimizer", SCIENCES)
def test_the_first_update_of_a_cold_stage_is_that_of_a_fresh_optimizer_on_the_carried_weights(
    optimizer: str, tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    first, second, _ = study.declare(path(FIRST, FIRST, optimizer=optimizer), [FIRST, SECOND, END])
    study.train(first)
    assert study.train(second, stop_after=1).kind == "stopped"
    fresh, carried = reference({FIRST}, 6, optimizer), reference(set(), 6, optimizer)
    after = load_file(study.state(second).checkpoint(FIRST + BATCH) / "model" / "model.safetensors")
    for name, parameter in fresh.model.named_parameters():
        assert torch.equal(after[name], parameter)
    assert any(not torch.equal(after[name], p) for name, p in carried.model.named_parameters()), "it makes a difference"


def test_two_cold_stages_in_a_row_both_begin_with_an_empty_state_and_a_carried_one_goes_on(tmp_path: Path) -> None:
    for begun, cold in (((FIRST, SECOND), {FIRST, SECOND}), ((FIRST, FIRST), {FIRST}), ((None, SECOND), {SECOND})):
        study = StudyFolder(tmp_path / str(begun))
        names = study.declare(path(*begun), [FIRST, SECOND, END])
        for name in names:
            study.train(name, checkpoint_every=2 * BATCH)
        loop = reference(cold, 12)
        checkpoint = study.state(names[-1]).checkpoint(END)
        weights = load_file(checkpoint / "model" / "model.safetensors")
        assert all(torch.equal(weights[name], p) for name, p in loop.model.named_parameters())
        kept, own = load_file(checkpoint / "optimizer.safetensors"), optimizer_tensors(loop.model, loop.optimizer)
        assert all(torch.equal(kept[name], own[name]) for name in own)
        assert float(kept["step.model.norm.weight"]) == (END - max(cold)) / BATCH


def test_a_cold_stage_that_was_stopped_goes_on_with_its_own_state(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    first, second, _ = study.declare(path(FIRST, FIRST), [FIRST, SECOND, END])
    study.train(first)
    assert study.train(second, stop_after=1).kind == "stopped"
    assert study.train(second).steps == 2
    weights = load_file(study.state(second).checkpoint(SECOND) / "model" / "model.safetensors")
    loop = reference({FIRST}, 8)
    assert all(torch.equal(weights[name], p) for name, p in loop.model.named_parameters())


def test_a_segment_does_not_run_across_an_emptied_state(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (whole,) = study.declare(path(FIRST, FIRST), [END])
    with pytest.raises(ValueError, match="`optimizer_from` changes inside it"):
        study.train(whole)


def test_every_switch_is_on_record_with_what_it_carried(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    pieces = path(FIRST, FIRST)
    pieces[1]["science"]["lr"] = {"shape": "linear", "from": 1e-2, "to": 0.0, "start": FIRST, "end": SECOND}
    pieces[2]["science"]["optimizer"] = {**SCIENCES["adamw"], "ema": 0.9}
    names = study.declare(pieces, [FIRST, SECOND, END])
    for name in names:
        study.train(name)
    every = {"weights": "carried", "data": "goes on", "schedule": "new", "spikes": "none"}
    stable = {"tokens": FIRST, "from_stage": "stable", "stage": "decay", "optimizer": "cold", "average": "none"}
    decay = {"tokens": SECOND, "from_stage": "decay", "stage": "long", "optimizer": "carried", "average": "begins"}
    assert [events(study, name) for name in names] == [[], [{**every, **stable}], [{**every, **decay}]]


def test_a_cut_inside_a_stage_is_no_switch(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    names = study.declare(path(), [3 * BATCH, FIRST])
    for name in names:
        study.train(name)
    assert [events(study, name) for name in names] == [[], []]
