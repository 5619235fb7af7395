"""A plan holds each stage's rope against the base: what could not be trained is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.plan.plan import build_plan
from harness.study.errors import Mistake, StudyError
from tests.plan.studies import identities, study

STAGED = """
  - cases:
      long:
        stages.stable.context: {length: 256, rope: {type: yarn, factor: auto}}
        stages.decay.context: {length: 512, rope: {type: KIND, factor: FACTOR}}
"""


def manifest(**changes: Any) -> dict[str, Any]:
    """What of a base's manifest speaks of positions: a model of 128 positions and heads of 16."""
    return {
        "rope": {"rope_type": "default", "rope_theta": 1e4},
        "max_positions": 128,
        "config": {"hidden_size": 32, "num_attention_heads": 2, **changes.pop("config", {})},
        "parameters": {"total": 1000, "matmul": 1000},
        "layers": 1,
        "hidden": 32,
        **changes,
    }


def plan(folder: Path, kind: str = "yarn", factor: str = "auto", base: dict[str, Any] | None = None) -> Any:
    items = STAGED.replace("KIND", kind).replace("FACTOR", factor)
    return build_plan(study(folder, items), identities(), base)


@pytest.mark.parametrize(("kind", "factor"), [("yarn", "auto"), ("ntk", "auto"), ("dynamic", "2"), ("llama3", "4")])
def test_stages_of_growing_length_keep_their_batch_and_each_has_its_own_rope(
    tmp_path: Path, kind: str, factor: str
) -> None:
    run = next(run for run in plan(tmp_path, kind, factor, manifest()).runs if run.arm == "long")
    pieces = [piece.science for piece in run.pieces]
    assert {science["batch_tokens"] for science in pieces} == {512}
    assert [science["context"]["length"] for science in pieces][-1] == 512
    assert pieces[0]["context"]["rope"] == {"type": "yarn", "factor": "auto"}
    assert pieces[-1]["context"]["rope"]["type"] == kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": None}, "the model has none"),
        ({"rope": {"full": {"rope_type": "default"}, "sliding": {"rope_type": "default"}}}, "per layer type"),
        ({"max_positions": 256}, "256 / 256: nothing to stretch"),
        ({"max_positions": None}, "it declares none"),
    ],
)
def test_a_base_that_cannot_have_the_rope_is_a_mistake_at_the_stage(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        plan(tmp_path, base=manifest(**changes))
    assert "stages.stable.context: in arm `long`, " in str(caught.value)


def test_dynamic_at_a_length_that_it_does_not_stretch_is_refused(tmp_path: Path) -> None:
    items = "  - cases: {same: {stages.decay.context.rope: {type: dynamic, factor: 2}}}"
    with pytest.raises(StudyError, match="longer than the model's 128 positions") as caught:
        build_plan(study(tmp_path, items), identities(), manifest())
    assert "stages.decay.context: in arm `same`, " in str(caught.value)


def test_without_a_manifest_nothing_is_known_and_nothing_refused(tmp_path: Path) -> None:
    assert plan(tmp_path).runs


def test_an_evaluation_beyond_learned_positions_is_refused_and_beyond_a_rope_s_is_not(tmp_path: Path) -> None:
    """Before anything is trained: there the look-up of a position would fail."""
    learned = manifest(rope=None, max_positions=128)
    longer = ("eval.max_length=256",)
    build_plan(study(tmp_path), identities(), learned)
    build_plan(study(tmp_path, overrides=longer), identities(), manifest())
    with pytest.raises(Mistake, match="256 is longer than the 128 learned positions") as caught:
        build_plan(study(tmp_path, overrides=longer), identities(), learned)
    assert caught.value.path == ("eval", "max_length")
