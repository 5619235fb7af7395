"""Each code finds what is planted for it, keeps quiet without it, and can be allowed by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.plan.lint import CODES, Lint
from harness.plan.plan import build_plan
from harness.study.errors import Mistake
from harness.study.treatment import Arm
from tests.plan.studies import identities, study


def findings(folder: Path, items: str, compare: str = "control: default", *overrides: str) -> list[Lint]:
    return build_plan(study(folder, items, compare, overrides), identities()).lint


PLANTED = {
    "unequal-tokens": ("  - cases: {more: {total: ~120k}}", "error", "more"),
    "schedule-open": ("  - cases: {open: {stages.decay.lr: {shape: constant}}}", "error", "open"),
    "confounded": ("  - mixture: {stage: decay, vary: math, values: [0.5], absorb: web}", "warning", "math=0.5"),
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_case_is_found_and_can_be_allowed_by_name(tmp_path: Path, code: str) -> None:
    items, level, arm = PLANTED[code]
    found = [item for item in findings(tmp_path, items) if item.code == code]
    assert [(item.level, item.arm) for item in found] == [(level, arm)]
    allowed = f"control: default, allow: {{{arm}: [{code}]}}"
    assert code not in {item.code for item in findings(tmp_path, items, allowed)}


def test_a_clean_study_has_no_findings(tmp_path: Path) -> None:
    assert findings(tmp_path, "  - one_at_a_time: {stages.decay.lr.shape: [cosine, 1-sqrt]}") == []


def test_a_study_without_a_control_is_told_so(tmp_path: Path) -> None:
    found = findings(tmp_path, "  - one_at_a_time: {stages.decay.lr.shape: [cosine]}", "")
    assert [(item.level, item.code) for item in found] == [("warning", "no-control")]
    assert "4.4" in found[0].message
    assert findings(tmp_path, "  []", "allow: {default: [no-control]}") == []


def test_a_cold_optimizer_at_full_rate_is_told_so(tmp_path: Path) -> None:
    found = findings(tmp_path, "  []", "control: default", "stages.stable.lr={shape: constant}")
    assert [(item.level, item.code, item.arm) for item in found] == [("warning", "cold-without-warmup", "default")]


def test_confounded_shows_both_numbers_of_what_else_moves(tmp_path: Path) -> None:
    items, _, _ = PLANTED["confounded"]
    message = next(item.message for item in findings(tmp_path, items) if item.code == "confounded")
    assert "web" in message
    assert "→" in message
    steps = findings(tmp_path, "  - one_at_a_time: {stages.decay.batch_tokens: [1024]}")
    assert ["number of updates" in item.message for item in steps if item.code == "confounded"] == [True]


def test_an_undeclared_difference_between_resolved_arms_is_an_error(tmp_path: Path) -> None:
    """Planted in the resolved arm, as a defect or a later include would: the declaration does not cover it."""
    loaded = study(tmp_path, "  - one_at_a_time: {stages.decay.lr.shape: [cosine]}")
    default, arm = loaded.arms
    decay = arm.treatment.stages[1]
    planted = replace(decay, optimizer=replace(decay.optimizer, weight_decay=0.0))
    stages = (arm.treatment.stages[0], planted)
    changed = Arm(arm.name, arm.changes, replace(arm.treatment, stages=stages))
    found = build_plan(replace(loaded, arms=(default, changed)), identities()).lint
    assert [(item.level, item.code) for item in found] == [("error", "undeclared-difference")]
    assert "stages.decay.optimizer.weight_decay: 0.1 → 0.0" in found[0].message


def test_what_follows_from_a_declared_change_is_not_undeclared(tmp_path: Path) -> None:
    for items in (
        "  - one_at_a_time: {train.optimizer.lr: [2.0e-3]}",
        "  - one_at_a_time: {stages.decay.tokens: [~20k]}",
        "  - cases: {long: {stages.decay.context: {length: 256, rope: {type: default, theta: 1.0e+5}}}}",
        "  - cases: {one: {lr: {shape: cosine, warmup: ~5k, to: 0.1x}}}",
    ):
        assert [item for item in findings(tmp_path, items) if item.code == "undeclared-difference"] == []


def test_allowing_what_is_no_finding_is_a_mistake_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="did you mean `schedule-open`") as caught:
        findings(tmp_path, "  []", "control: default, allow: {default: [shedule-open]}")
    assert caught.value.path == ("compare", "allow", "default", 0)


def test_equal_flops_is_checked_where_equal_tokens_would_not_do(tmp_path: Path) -> None:
    longer = "  - cases: {long: {train.context.length: 512}}"
    assert "unequal-flops" not in {item.code for item in findings(tmp_path, longer)}
    found = [item for item in findings(tmp_path, longer, "control: default, equal: flops") if item.level == "error"]
    assert [(item.code, item.arm) for item in found] == [("unequal-flops", "long")]
    more = "  - cases: {more: {total: ~120k}}"
    codes = {item.code for item in findings(tmp_path, more, "control: default, equal: flops")}
    assert "unequal-flops" in codes and "unequal-tokens" not in codes


def test_every_code_has_a_sentence_and_a_test() -> None:
    tested = {*PLANTED, "unequal-flops", "no-control", "cold-without-warmup", "undeclared-difference"}
    assert set(CODES) == tested
