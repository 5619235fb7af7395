"""Merge segments in the plan, and what lint says of the ends of all shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.plan.plan import Plan, build_plan
from harness.study import StudyError
from tests.plan.studies import TASK, identities, study

AVERAGED = ("train.optimizer.ema=0.99", "eval.at=[end, ema]")


def _plan(folder: Path, items: str | None = None, overrides: tuple[str, ...] = AVERAGED, **options: Any) -> Plan:
    loaded = study(folder, **({} if items is None else {"items": items}), overrides=overrides)
    return build_plan(loaded, identities(), tasks=[TASK], **options)


@pytest.mark.parametrize("share", [True, False])
def test_every_run_has_a_point_whose_state_is_merged_from_its_end(tmp_path: Path, share: bool) -> None:
    plan = _plan(tmp_path, share=share)
    for run in plan.runs:
        point = run.points[-1]
        merge = plan.segments[point.state]
        assert (point.label, point.segment, point.tokens) == ("ema", merge.id, run.tokens)
        assert (merge.kind, merge.parent, merge.tokens_from, merge.tokens_to) == (
            *("merge", run.path[-1]),
            *(run.tokens, run.tokens),
        )
        assert plan.segment_json(merge.id)["recipe"] == {"method": "ema", "of": [run.path[-1]]}
        assert merge.id not in run.path
    assert {item.label for item in plan.evals} == {"end", "ema"}
    assert len(plan.evals) == 2 * len(plan.runs)
    names = list(plan.segments)
    assert all(names.index(s.parent) < names.index(s.id) for s in plan.segments.values() if s.kind == "merge")


def test_a_merge_trains_nothing_and_costs_its_weights(tmp_path: Path) -> None:
    with_it, without = _plan(tmp_path), _plan(tmp_path, overrides=())
    trained = [segment for segment in with_it.segments.values() if segment.kind == "train"]
    merged = [segment for segment in with_it.segments.values() if segment.kind == "merge"]
    assert len(merged) == len(with_it.runs) and len(trained) == len(without.segments)
    for total in ("tokens", "tokens_unshared", "tokens_to_train", "flops"):
        assert with_it.totals[total] == without.totals[total]
    parameters = with_it.shape.total  # type: ignore[union-attr]
    extra = 4 * parameters * len(trained) + 4 * parameters * len(merged)
    assert with_it.totals["disk_bytes"] == without.totals["disk_bytes"] + extra


def test_an_average_is_science_and_its_evaluation_is_not(tmp_path: Path) -> None:
    with_it, without = _plan(tmp_path), _plan(tmp_path, overrides=())
    assert with_it.runs[0].path[-1] != without.runs[0].path[-1]
    assert with_it.runs[0].pieces[0].science["optimizer"]["ema"] == 0.99
    assert "ema" not in without.runs[0].pieces[0].science["optimizer"]


def test_an_arm_without_an_average_beside_those_with_one_is_refused(tmp_path: Path) -> None:
    items = "  - cases:\n      bare: {train.optimizer.ema: null}"
    with pytest.raises(StudyError, match="arm `bare` keeps none"):
        study(tmp_path, items, overrides=AVERAGED)


SHAPES = {
    "inverse-sqrt": ("{shape: inverse-sqrt}", "ends inside inverse-sqrt, which has no end"),
    "power": ("{shape: power}", "ends inside power, which has no end"),
    "constant": ("{shape: constant}", "ends at a constant rate"),
    "rising-steps": ("{shape: multi-step, milestones: [0.5], factors: [2.0]}", "ends at a constant rate"),
    "multi-step": ("{shape: multi-step}", None),
    "exponential": ("{shape: exponential, to: 0.01x}", None),
    "1-square": ("{shape: 1-square, to: 0}", None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_lint_knows_which_shapes_are_open_at_their_end(tmp_path: Path, name: str) -> None:
    block, said = SHAPES[name]
    plan = _plan(tmp_path, f"  - cases:\n      other: {{stages.decay.lr: {block}}}", overrides=())
    found = [item.message for item in plan.lint if item.code == "schedule-open" and item.arm == "other"]
    assert len(found) == (said is not None) and all(str(said) in message for message in found)
    assert not [item for item in plan.lint if item.code == "undeclared-difference"]


def test_the_plan_says_where_another_optimizer_starts_cold(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "  - cases:\n      other: {stages.decay.optimizer.name: lion}", overrides=())
    assert "stages.decay: lion after adamw starts cold, without the state that adamw has built up" in plan.study.notes
    assert not [item for item in plan.lint if item.code == "undeclared-difference"]
    assert plan.runs[0].path[0] == plan.runs[2].path[0], "the trunk is shared"
