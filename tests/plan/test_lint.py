"""Each code finds what is planted for it, keeps quiet without it, and can be allowed by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.plan.lint import CODES, OF_RESULTS, OF_TREATMENTS, Lengths, Lint
from harness.plan.lint import Path as Path_
from harness.plan.lint.schedules import rewarms_annealed_base, schedule_open
from harness.plan.plan import build_plan
from harness.study import load_study
from harness.study.errors import Mistake
from harness.study.treatment import Arm
from tests.plan.studies import identities, study, write
from tests.plan.test_lint_results import TESTED as TESTED_OF_RESULTS


def findings(folder: Path, items: str, compare: str = "allow: {default: [no-control]}", *overrides: str) -> list[Lint]:
    return build_plan(study(folder, items, compare, overrides), identities()).lint


PLANTED = {
    "unequal-tokens": ("  - cases: {more: {total: ~120k}}", "error", "more"),
    "schedule-open": ("  - cases: {open: {stages.decay.lr: {shape: constant}}}", "error", "open"),
    "confounded": ("  - mixture: {stage: decay, vary: math, values: [0.5], absorb: web}", "warning", "math=0.5"),
    "never-drawn": ("  - mixture: {stage: decay, vary: math, values: [1.0e-6], absorb: web}", "warning", "math=1e-06"),
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_case_is_found_and_can_be_allowed_by_name(tmp_path: Path, code: str) -> None:
    items, level, arm = PLANTED[code]
    found = [item for item in findings(tmp_path, items) if item.code == code]
    assert [(item.level, item.arm) for item in found] == [(level, arm)]
    allowed = f"allow: {{default: [no-control], {arm}: [{code}]}}"
    assert code not in {item.code for item in findings(tmp_path, items, allowed)}


def test_a_clean_study_has_no_findings(tmp_path: Path) -> None:
    assert findings(tmp_path, "  - one_at_a_time: {stages.decay.lr.shape: [cosine, 1-sqrt]}") == []


def test_a_study_without_a_control_is_told_so(tmp_path: Path) -> None:
    found = findings(tmp_path, "  - one_at_a_time: {stages.decay.lr.shape: [cosine]}", "")
    assert [(item.level, item.code) for item in found] == [("warning", "no-control")]
    assert "4.4" in found[0].message
    assert findings(tmp_path, "  []", "allow: {default: [no-control]}") == []


def test_a_cold_optimizer_at_full_rate_is_told_so(tmp_path: Path) -> None:
    found = findings(tmp_path, "  []", "allow: {default: [no-control]}", "stages.stable.lr={shape: constant}")
    assert [(item.level, item.code, item.arm) for item in found] == [("warning", "cold-without-warmup", "default")]


def test_confounded_shows_both_numbers_of_what_else_moves(tmp_path: Path) -> None:
    items, _, _ = PLANTED["confounded"]
    message = next(item.message for item in findings(tmp_path, items) if item.code == "confounded")
    assert "web" in message
    assert "→" in message
    steps = findings(tmp_path, "  - one_at_a_time: {stages.decay.batch_tokens: [1024]}")
    assert ["number of updates" in item.message for item in steps if item.code == "confounded"] == [True]


@pytest.mark.parametrize("items", [PLANTED["confounded"][0].replace("absorb: web", "absorb: web, as: w"), "zip"])
def test_an_axis_under_another_name_is_confounded_as_it_is_under_its_own(tmp_path: Path, items: str) -> None:
    own = PLANTED["confounded"][0].removeprefix("  - ")
    zipped = f"  - zip: [{{{own}}}, {{stages.decay.lr.shape: [cosine]}}]\n    as: w"
    found = [item for item in findings(tmp_path, zipped if items == "zip" else items) if item.code == "confounded"]
    assert [item.arm for item in found] == ["w=0.5"]
    assert "web" in found[0].message and "math" not in found[0].message


LONGER = "  - one_at_a_time: {stages.decay.tokens: [~20k]}"


def test_a_longer_decay_with_a_mixture_of_its_own_is_confounded_and_one_on_train_is_not(tmp_path: Path) -> None:
    assert not findings(tmp_path, LONGER)
    own = "stages.decay.mixture={web: 0.5, math: 0.5}"
    (found,) = findings(tmp_path, LONGER, "allow: {default: [no-control]}", own)
    assert (found.level, found.code, found.arm) == ("warning", "confounded", "decay.tokens=20k")
    assert "math 14,080 → 17,920 tokens" in found.message and "`train` would hold the doses" in found.message
    assert not findings(tmp_path, LONGER, "allow: {default: [no-control], decay.tokens=20k: [confounded]}", own)
    # The total itself is another: that is `unequal-tokens`, and what follows from it is not said again.
    codes = {item.code for item in findings(tmp_path, "  - cases: {more: {total: ~120k}}", "allow: {}", own)}
    assert "unequal-tokens" in codes and "confounded" not in codes


def test_the_name_of_a_stage_may_hold_dots(tmp_path: Path) -> None:
    path = write(tmp_path, "  - cases: {wd: {train.optimizer.weight_decay: 0.2, total: ~100k}}")
    path.write_text(path.read_text().replace("  decay: {tokens", "  decay.v2: {tokens"))
    assert build_plan(load_study(path), identities()).lint == []


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
        findings(tmp_path, "  []", "allow: {default: [no-control, shedule-open]}")
    assert caught.value.path == ("compare", "allow", "default", 1)


def test_equal_flops_is_checked_where_equal_tokens_would_not_do(tmp_path: Path) -> None:
    longer = "  - cases: {long: {train.context.length: 512}}"
    assert "unequal-flops" not in {item.code for item in findings(tmp_path, longer)}
    found = [
        item
        for item in findings(tmp_path, longer, "allow: {default: [no-control]}, equal: flops")
        if item.level == "error"
    ]
    assert [(item.code, item.arm) for item in found] == [("unequal-flops", "long")]
    more = "  - cases: {more: {total: ~120k}}"
    codes = {item.code for item in findings(tmp_path, more, "allow: {default: [no-control]}, equal: flops")}
    assert "unequal-flops" in codes and "unequal-tokens" not in codes


def test_a_decay_that_training_leaves_above_its_end_is_open(tmp_path: Path) -> None:
    """Planted in the resolved schedule, as a path that is cut short would: the decay goes on where nobody trains."""
    (decay,) = study(tmp_path, "  []").arms
    last = {"shape": "linear", "from": 1e-3, "to": 0.0, "start": 512, "end": 1536}
    (found,) = schedule_open(decay, Path_([("decay", last)], 1024, [1024]))
    assert (found.level, found.code) == ("error", "schedule-open")
    assert "ends at token 1,536, and training at token 1,024" in found.message and "0.0005" in found.message
    assert not list(schedule_open(decay, Path_([("decay", last)], 1536, [1536])))


REWARMED = "  - cases: {again: {stages.stable.lr: {shape: linear, to: 0}, stages.decay.lr: LR}}"


def test_a_stage_that_takes_an_annealed_rate_up_again_is_told_with_both_rates(tmp_path: Path) -> None:
    items = REWARMED.replace("LR", "{shape: linear, from: 1.0e-3, to: 0}")
    found = [item for item in findings(tmp_path, items) if item.code == "rewarms-annealed-base"]
    assert [(item.level, item.arm) for item in found] == [("warning", "again")]
    assert "`stable` was left at a rate of 0 and `decay` takes it up to 0.001" in found[0].message
    allowed = "allow: {default: [no-control], again: [rewarms-annealed-base]}"
    assert "rewarms-annealed-base" not in {item.code for item in findings(tmp_path, items, allowed)}


@pytest.mark.parametrize(("left", "found"), [(0.0, True), (1e-4, True), (2e-4, False), (None, False)])
def test_a_base_that_was_annealed_and_is_warmed_up_again_is_told(
    tmp_path: Path, left: float | None, found: bool
) -> None:
    (default,) = study(tmp_path, "  []").arms
    base = replace(default.treatment.base, model={"path": "somewhere"}, lr=left)
    arm = replace(default, treatment=replace(default.treatment, base=base))
    warmup = {"shape": "linear", "from": 0.0, "to": 1e-3, "start": 0, "end": 512, "at": "end"}
    body = {"shape": "linear", "from": 1e-3, "to": 0.0, "start": 512, "end": 1536}
    told = list(rewarms_annealed_base(arm, Path_([("decay", warmup), ("decay", body)], 1536, [512, 1536])))
    assert bool(told) is found
    if found:
        assert told[0].message.startswith(f"the base was left at a rate of {left:g} and `decay`")


LONG = "  - cases: {long: {stages.decay.context: {length: 512, rope: {type: default, theta: 1.0e+5}}}}"


def lengths(web: int, math: int) -> dict[str, Any]:
    """Manifests of two sources of 1,000 tokens, so many of them farther than 128 from their document's start."""
    return {
        name: {"train": {"tokens": 1000, "beyond": {"128": count, "1024": 0}}}
        for name, count in (("web", web), ("math", math))
    }


def unused(
    folder: Path, items: str, manifests: dict[str, Any], compare: str = "allow: {default: [no-control]}"
) -> list[Lint]:
    plan = build_plan(study(folder, items, compare), identities(), sources=manifests)
    return [item for item in plan.lint if item.code == "context-unused"]


def test_a_longer_window_over_short_documents_is_told_with_its_share_weighted_by_the_mixture(tmp_path: Path) -> None:
    (found,) = unused(tmp_path, LONG, lengths(web=10, math=200))  # 0.9 x 1 % + 0.1 x 20 %
    assert (found.level, found.arm) == ("warning", "long")
    assert "window of 512" in found.message and "2.90%" in found.message and "farther than 128" in found.message
    assert not unused(tmp_path, LONG, lengths(web=40, math=200))  # 5.6 %
    assert not unused(tmp_path, LONG, lengths(10, 200), "allow: {default: [no-control], long: [context-unused]}")


def test_a_window_is_not_called_unused_where_documents_are_joined_or_lengths_not_known(tmp_path: Path) -> None:
    joined = LONG.replace("length: 512", "length: 512, documents: joined")
    assert not unused(tmp_path, joined, lengths(0, 0))
    assert not unused(tmp_path, LONG, {"web": lengths(0, 0)["web"]})
    assert not unused(tmp_path, LONG, {})


def test_from_scratch_the_window_before_the_first_stage_is_the_baselines(tmp_path: Path) -> None:
    items = "  - cases: {long: {train.context.length: 512}}"
    (found,) = unused(tmp_path, items, lengths(0, 0))
    assert found.arm == "long" and "`stable`" in found.message


def test_between_listed_lengths_the_share_of_the_shorter_one_counts() -> None:
    known = Lengths({"web": {0: 1.0, 128: 0.5, 1024: 0.1}})
    assert [known.share("web", length) for length in (64, 128, 512, 4096)] == [1.0, 0.5, 0.5, 0.1]
    assert known.share("math", 128) is None


@pytest.mark.parametrize(
    ("seeds", "crossed"),
    [
        ("{init: [1, 2], data: [1, 2, 3]}", True),
        ("{init: [1, 2], data: [1, 2], pair: zip}", False),
        ("{init: [7], data: [1, 2, 3]}", False),
        ("{init: [1, 2, 3], data: [4]}", False),
    ],
)
def test_replicates_that_share_seeds_are_not_called_independent_without_a_word(
    tmp_path: Path, seeds: str, crossed: bool
) -> None:
    items = "  - one_at_a_time: {stages.decay.lr.shape: [cosine]}"
    found = findings(tmp_path, items, "allow: {default: [no-control]}", f"seeds={seeds}")
    assert [(item.level, item.code, item.arm) for item in found] == [("warning", "crossed-seeds", "")] * crossed
    allowed = "allow: {default: [no-control, crossed-seeds]}"
    assert findings(tmp_path, items, allowed, f"seeds={seeds}") == []


def test_every_code_has_a_sentence_and_a_test() -> None:
    tested = {*PLANTED, "crossed-seeds", "unequal-flops", "no-control", "cold-without-warmup", "undeclared-difference"}
    tested |= {"rewarms-annealed-base", "context-unused"}
    assert set(OF_TREATMENTS) == tested
    assert set(OF_RESULTS) == TESTED_OF_RESULTS
    assert set(CODES) == {*OF_TREATMENTS, *OF_RESULTS}
