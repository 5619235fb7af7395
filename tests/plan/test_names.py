"""An arm under two names: the baseline, the control, what is allowed, and what a run records."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan.plan import build_plan
from tests.plan.studies import TASK, identities, study
from tests.plan.test_lint import findings

# `same` and `again` are `default` under other names.
SAME = """
  - cases:
      same: {train.precision: fp32}
      again: {train.optimizer.name: adamw}
      long: {train.context.length: 512}
"""


def codes(folder: Path, compare: str) -> list[tuple[str, str, str]]:
    return [(item.level, item.code, item.arm) for item in findings(folder, SAME, compare)]


def test_a_baseline_under_another_name_is_held_to_the_same_flops(tmp_path: Path) -> None:
    (found,) = codes(tmp_path, "baseline: same, equal: flops, allow: {same: [no-control]}")
    assert found == ("error", "unequal-flops", "long")


@pytest.mark.parametrize("name", ["default", "same", "again"])
def test_a_finding_is_allowed_under_every_name_of_its_arm(tmp_path: Path, name: str) -> None:
    allow = f"allow: {{{name}: [schedule-open, no-control]}}"
    found = findings(tmp_path, SAME, allow, "stages.decay.lr={shape: constant}")
    assert not [item for item in found if item.arm in ("default", "")]


@pytest.mark.parametrize(("baseline", "control"), [("default", "same"), ("same", "default"), ("same", "again")])
def test_a_control_that_is_the_baseline_under_another_name_is_an_error(
    tmp_path: Path, baseline: str, control: str
) -> None:
    (found,) = findings(tmp_path, SAME, f"baseline: {baseline}, control: {control}")
    assert (found.level, found.code) == ("error", "no-control")
    assert f"`compare.control: {control}` and the baseline `{baseline}` are one arm" in found.message
    assert not findings(tmp_path, SAME, f"baseline: {baseline}, control: {control}, allow: {{again: [no-control]}}")


def test_without_weight_decay_there_is_none_on_embeddings_to_leave_out(tmp_path: Path) -> None:
    cases = """
  - cases:
      none: {train.optimizer.weight_decay: 0}
      of-none: {train.optimizer: {weight_decay: 0, decay_embeddings: false}}
      of-some: {train.optimizer.decay_embeddings: false}
"""
    plan = build_plan(study(tmp_path, cases), identities())
    assert {arm.name: arm.same_as for arm in plan.arms[1:]} == {"none": None, "of-none": "none", "of-some": None}


def test_a_run_records_its_own_evaluations_and_its_arms_changes(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path), identities(), None, [TASK])
    changes = {arm.name: dict(arm.changes) for arm in plan.arms}
    for run in plan.runs:
        record = plan.run_json(run)
        assert record["changes"] == changes[run.arm]
        assert [one["point"] for one in record["evals"]] == [e.label for e in plan.evals if e.run == run.name]
        assert record["evals"]
