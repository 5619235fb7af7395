"""Declared merges: their coefficients, and what a plan makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plan.fingerprint import state_at
from harness.plan.merges import coefficients_of, decay_weights, normalised
from harness.plan.observed import AttemptSeen, CheckpointSeen, Observed, StateSeen
from harness.plan.plan import Plan, build_plan
from harness.plan.render import text
from harness.study import StudyError, load_study
from harness.study.errors import Mistake
from harness.study.schema.merge import DECAYS
from tests.plan.studies import TASK, TEXT, identities

ITEMS = """
  - cases:
      cosine: {stages.decay.lr.shape: cosine}
      trunk: {stages.decay.lr: {shape: constant}}
"""
SOUP = "  soup: {of: seeds, arm: cosine}\n"
ARMS = "  both: {of: arms, arms: [default, cosine], weights: [1, 3]}\n"
WSM = "  wsm: {of: checkpoints, arm: trunk, over: 4096, every: 1024, decay: linear}\n"
ALL = SOUP + ARMS + WSM


def _plan(folder: Path, merge: str = ALL, overrides: tuple[str, ...] = (), items: str = ITEMS, **options: Any) -> Plan:
    block = f"merge:\n{merge}" if merge else ""
    text = (
        TEXT.replace("ITEMS", items.strip("\n"))
        .replace(", COMPARE", ", allow: {default: [no-control]}")
        .replace("~100k", "40960")
    )
    path = folder / "small.yaml"
    path.write_text(text.replace("~10k", "10240").replace("seeds:", f"{block}seeds:"))
    return build_plan(load_study(path, overrides), identities(), tasks=[TASK], **options)


def weights_of(coefficients: Sequence[Fraction]) -> list[Fraction]:
    """w_1..w_k of the updates between k + 1 parts: what the paper's formula gives, and `coefficients_of` inverts."""
    return [sum(coefficients[i:], Fraction(0)) for i in range(1, len(coefficients))]


def _to(shape: str, to: Fraction) -> Fraction:
    return to or Fraction(1, 10) if shape == "exponential" else to


# Coefficients


@pytest.mark.parametrize("count", [1, 3, 7, 63])
def test_a_linear_decay_to_zero_is_the_uniform_mean_exactly(count: int) -> None:
    assert coefficients_of(decay_weights("linear", Fraction(0), count)) == normalised(None, count + 1)
    assert weights_of(normalised(None, count + 1)) == decay_weights("linear", Fraction(0), count)
    assert coefficients_of(decay_weights("1-square", Fraction(0), count)) != normalised(None, count + 1)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DECAYS), st.fractions(0, Fraction(9, 10), max_denominator=100), st.integers(1, 60))
def test_coefficients_are_weights_of_a_mean_and_give_the_decay_back(shape: str, to: Fraction, count: int) -> None:
    weights = decay_weights(shape, _to(shape, to), count)
    assert all(before > after > 0 for before, after in zip([Fraction(1), *weights], weights, strict=False))
    found = coefficients_of(weights)
    assert len(found) == count + 1 and sum(found) == 1 and all(one > 0 for one in found)
    assert weights_of(found) == weights
    assert weights[-1] >= to


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("to", [Fraction(0), Fraction(1, 4)])
def test_the_mean_of_checkpoints_is_the_trunk_with_decayed_updates(shape: str, to: Fraction) -> None:
    """theta_j of a trunk theta_i = theta_(i-1) - rate g_i, and the same gradients at rates that decay: equal exactly,
    and in fp64 to its rounding."""
    draw = random.Random(7)
    rate, start, count = Fraction(3, 1000), Fraction(draw.randint(-999, 999), 500), 8
    gradients = [Fraction(draw.randint(-999, 999), 700) for _ in range(count)]
    trunk = [start]
    for gradient in gradients:
        trunk.append(trunk[-1] - rate * gradient)
    weights = decay_weights(shape, _to(shape, to), count)
    decayed = start
    for weight, gradient in zip(weights, gradients, strict=True):
        decayed -= rate * weight * gradient
    coefficients = coefficients_of(weights)
    assert sum(c * theta for c, theta in zip(coefficients, trunk, strict=True)) == decayed
    in_floats = sum(float(c) * float(theta) for c, theta in zip(coefficients, trunk, strict=True))
    assert in_floats == pytest.approx(float(decayed), rel=1e-14)


def test_a_decay_weighs_the_updates_as_the_schedule_of_that_name_would() -> None:
    from harness.plan.schedule import rate

    for shape in DECAYS:
        to = 0.125
        piece = {"shape": shape, "from": 1.0, "to": to, "start": 0, "end": 9}
        weights = decay_weights(shape, Fraction(1, 8), 8)
        assert [float(w) for w in weights] == pytest.approx([rate(piece, i, 1) for i in range(1, 9)], abs=1e-12)


# The plan


def test_merges_are_arms_whose_runs_are_one_segment_each(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    by_name = {run.name: run for run in plan.runs}
    assert [run.name for run in plan.runs if run.made_of] == ["soup/d1+d2", "both/d1", "both/d2", "wsm/d1", "wsm/d2"]
    json = plan.to_json()
    assert [arm["merge"] for arm in json["arms"] if "merge" in arm] == ["seeds", "arms", "checkpoints"]
    segments = {segment["id"]: segment for segment in json["segments"]}

    def made(name: str) -> tuple[list[str], list[str]]:
        (state,) = by_name[name].path
        recipe = plan.segment_json(state)["recipe"]
        assert recipe["method"] == "mean" and segments[state]["kind"] == "merge" and segments[state]["flops"] == 0
        assert segments[state]["parents"] == recipe["of"]
        assert segments[state]["tokens_from"] == segments[state]["tokens_to"] == 40960
        return recipe["of"], recipe["coefficients"]

    ends = {run.name: run.path[-1] for run in plan.runs}
    assert made("soup/d1+d2") == ([ends["cosine/d1"], ends["cosine/d2"]], ["1/2", "1/2"])
    assert made("both/d2") == ([ends["default/d2"], ends["cosine/d2"]], ["1/4", "3/4"])
    parts, coefficients = made("wsm/d1")
    assert parts == by_name["trunk/d1"].path[-5:] and coefficients == ["1/5"] * 5
    assert [segments[state]["tokens_to"] for state in parts] == [36864, 37888, 38912, 39936, 40960]
    assert {item.run for item in plan.evals if item.label == "end"} == set(by_name)
    assert by_name["soup/d1+d2"].seeds.declared == {"init": [1, 1], "data": [1, 2]}


def test_adding_merges_rekeys_nothing_and_costs_no_tokens(tmp_path: Path) -> None:
    without, with_them = _plan(tmp_path, ""), _plan(tmp_path)
    assert set(without.segments) < set(with_them.segments)
    for run in without.runs:
        same = next(other for other in with_them.runs if other.name == run.name)
        assert [p.state for p in same.points] == [p.state for p in run.points]
    assert [a.fingerprint for a in without.arms] == [a.fingerprint for a in with_them.arms[: len(without.arms)]]
    for total in ("tokens", "tokens_unshared", "tokens_to_train", "flops"):
        assert with_them.totals[total] == without.totals[total]
    parameters = with_them.shape.total  # type: ignore[union-attr]
    more = with_them.totals["disk_bytes"] - without.totals["disk_bytes"]
    cut, made = 2 * 4, 5  # checkpoints of the trunk with their optimizer, and merged weights
    assert more == parameters * (12 * cut + 4 * made)


def test_a_window_over_a_trunk_that_was_trained_before_says_what_is_trained_again(tmp_path: Path) -> None:
    before = _plan(tmp_path, "")
    done = {name: StateSeen("trained", weights=name) for name in (*before.segments, *before.bases)}
    assert not any(segment.needed for segment in _plan(tmp_path, "", observed=Observed(states=done)).segments.values())
    plan = _plan(tmp_path, WSM, observed=Observed(states=done))
    again = [segment for segment in plan.segments.values() if segment.needed and segment.kind == "train"]
    assert plan.totals["tokens_to_train"] == 2 * 9216, "from the branch to the last checkpoint before the end"
    assert {(s.state, s.reason.partition(":")[0]) for s in again} == {
        ("recomputed", f"no checkpoint was kept at token {tokens:,}") for tokens in (36864, 37888, 38912, 39936)
    }
    run = next(run for run in plan.runs if run.name == "trunk/d1")
    inside = state_at(run.base, run.pieces, run.data_seeds, 38400)
    kept = {inside: CheckpointSeen("somewhere", 38400, run.path[-1])}
    nearer = _plan(tmp_path, WSM, observed=Observed(states=done, checkpoints=kept))
    assert nearer.totals["tokens_to_train"] == 2 * 9216 - 512, "from the checkpoint that the trunk has left inside"
    whole = {**done, **{run.path[0]: StateSeen("trained", weights="m") for run in plan.runs if run.made_of}}
    assert not any(s.needed for s in _plan(tmp_path, WSM, observed=Observed(states=whole)).segments.values())


def test_a_diverged_part_makes_a_merge_unreachable_and_that_is_a_result(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    end = {run.name: run.path[-1] for run in plan.runs}
    seen = {end["cosine/d1"]: StateSeen("diverged")}
    after = _plan(tmp_path, observed=Observed(states=seen))
    lost = {
        name for name, run in ((r.name, r) for r in after.runs if r.made_of) if not after.segments[run.path[0]].needed
    }
    assert lost == {"soup/d1+d2", "both/d1"}
    assert "diverged before it" in after.segments[end["soup/d1+d2"]].reason


def test_without_sharing_each_run_has_its_own_parts(tmp_path: Path) -> None:
    plan = _plan(tmp_path, share=False)
    for run in (run for run in plan.runs if run.made_of):
        parts = plan.segments[run.path[0]].parents
        own = {state for index in run.made_of for state in plan.runs[index].path}
        assert set(parts) <= own and len(parts) == len(set(parts)) > 1


def test_merges_with_equal_parts_and_weights_are_one_arm(tmp_path: Path) -> None:
    same = "  also: {of: checkpoints, arm: trunk, over: 4096, every: 1024, weights: [2, 2, 2, 2, 2]}\n"
    other = "  other: {of: checkpoints, arm: trunk, over: 4096, every: 1024, decay: 1-sqrt}\n"
    plan = _plan(tmp_path, WSM + same + other)
    assert {arm.name: arm.same_as for arm in plan.arms if arm.merge} == {"wsm": None, "also": "wsm", "other": None}
    assert not [run for run in plan.runs if run.arm == "also"]


def test_arms_of_equal_science_are_no_parts_of_a_merge(tmp_path: Path) -> None:
    items = "  - cases: {again: {stages.decay.lr.shape: linear}}\n"
    with pytest.raises(Mistake, match="`again` and `default` are one arm under two names"):
        _plan(tmp_path, "  m: {of: arms, arms: [default, again]}\n", items=items)


@pytest.mark.parametrize(
    ("arm", "over", "said"),
    [
        ("default", 4096, r"`default`, where the rate is linear from token 36,864 on \(`decay`\)"),
        ("steps", 12288, r"`steps`, where the rate goes from 0.001 to 0.000316 from token 38,912 on \(`decay`\)"),
    ],
)
def test_a_window_at_a_rate_that_changes_is_refused_with_the_place(
    tmp_path: Path, arm: str, over: int, said: str
) -> None:
    items = ITEMS + "      steps: {stages.decay.lr: {shape: multi-step}}\n"
    with pytest.raises(Mistake, match=said):
        _plan(
            tmp_path, f"  m: {{of: checkpoints, arm: {arm}, over: {over}, every: 1024, decay: linear}}\n", items=items
        )


def test_a_window_may_begin_in_the_stage_before(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "  m: {of: checkpoints, arm: trunk, over: 20480, every: 5120, decay: cosine, to: 0.1}\n")
    run = next(run for run in plan.runs if run.arm == "m")
    assert [plan.segments[state].tokens_to for state in plan.segments[run.path[0]].parents] == [
        *(20480, 25600, 30720, 35840, 40960)
    ]


def test_what_a_merge_cost_is_compared_with_the_baseline(tmp_path: Path) -> None:
    found = {item.arm: item for item in _plan(tmp_path).lint if item.code == "unequal-tokens"}
    assert set(found) == {"soup", "both"}, "a window of a trunk cost no more than the trunk"
    assert found["both"].message.startswith("is made of runs that train on 51,200 tokens together"), "one trunk"
    assert found["soup"].message == "is made of runs that train on 81,920 tokens together, default on 40,960"
    assert found["soup"].level == "error"
    allowed = ("compare.allow.soup=[unequal-tokens]", "compare.allow.both=[unequal-tokens]")
    assert not [item for item in _plan(tmp_path, overrides=allowed).lint if item.code == "unequal-tokens"]
    flops = {i.arm for i in _plan(tmp_path, overrides=("compare.equal=flops",)).lint if i.code == "unequal-flops"}
    assert flops == {"soup", "both"}


def test_a_merge_of_an_arm_that_does_not_reach_its_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"merge\.m\.over: 40,960 tokens are no part of the path of `trunk`"):
        _plan(tmp_path, "  m: {of: checkpoints, arm: trunk, over: 40960, every: 1024, decay: linear}\n")


def test_many_seeds_have_a_name_that_a_folder_can_carry(tmp_path: Path) -> None:
    seeds = ", ".join(map(str, range(1, 41)))
    plan = _plan(tmp_path, SOUP, overrides=(f"seeds.data=[{seeds}]",))
    (run,) = [run for run in plan.runs if run.made_of]
    assert run.name == "soup/d1+39" and len(plan.segments[run.path[0]].parents) == 40


def test_the_order_in_which_parts_are_written_makes_no_other_mean(tmp_path: Path) -> None:
    again = "  again: {of: arms, arms: [cosine, default], weights: [3, 1]}\n"
    other = "  other: {of: arms, arms: [cosine, default], weights: [1, 3]}\n"
    plan = _plan(tmp_path, ARMS + again + other)
    assert {arm.name: arm.same_as for arm in plan.arms if arm.merge} == {"both": None, "again": "both", "other": None}
    alone = _plan(tmp_path, again.replace("again", "both"))
    paths = [{run.name: run.path for run in one.runs if run.arm == "both"} for one in (plan, alone)]
    assert paths[0] == paths[1]


def test_a_merge_is_rekeyed_by_its_coefficients_and_says_so(tmp_path: Path) -> None:
    before = _plan(tmp_path)
    seen = Observed(states={name: StateSeen("trained", weights=name) for name in before.segments})
    seen = replace(seen, previous=before.record())
    plan = _plan(tmp_path, ALL.replace("[1, 3]", "[1, 1]").replace("linear", "1-sqrt"), observed=seen)
    reasons = {run.name: plan.segments[run.path[0]].reason for run in plan.runs if run.made_of}
    assert reasons["both/d1"] == reasons["both/d2"] == "because coefficients 1/4, 3/4→1/2, 1/2"
    assert reasons["wsm/d1"].startswith("because coefficients 1/5, 1/5, 1/5, 1/5, 1/5→")
    assert reasons["soup/d1+d2"] == "done"


def test_the_science_of_a_merged_run_is_what_it_is_made_of(tmp_path: Path) -> None:
    science = _plan(tmp_path).record()["science"]
    assert science["both/d1"]["facts"] == {"made of": "default/d1, cosine/d1", "coefficients": "1/4, 3/4"}


def test_a_merge_of_ends_at_an_open_rate_is_open_and_one_of_checkpoints_is_not(tmp_path: Path) -> None:
    merge = "  s: {of: seeds, arm: trunk}\n  a: {of: arms, arms: [default, trunk]}\n" + WSM
    found = {item.arm: item for item in _plan(tmp_path, merge).lint if item.code == "schedule-open"}
    assert set(found) == {"trunk", "s", "a"}
    assert found["a"].level == "error"
    assert found["a"].message.startswith("is made of `trunk`, which ends at a constant rate of 0.001")
    allowed = _plan(tmp_path, merge, overrides=("compare.allow.a=[schedule-open]",)).lint
    assert {item.arm for item in allowed if item.code == "schedule-open"} == {"trunk", "s"}


def test_a_plan_shows_what_each_merge_is_in_eighty_columns(tmp_path: Path) -> None:
    weighed = "  w: {of: seeds, arm: cosine, weights: [1, 3]}\n"
    shown = text(_plan(tmp_path, ALL + weighed), width=80)
    said = ("mean of 2 seeds of cosine", "1/4 default + 3/4 cosine", "5 checkpoints of trunk, linear")
    for words in (*said, "1/4 d1 + 3/4 d2 of cosine"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_numerics_of_a_merge_are_no_difference_to_those_of_training(tmp_path: Path) -> None:
    plan = _plan(tmp_path)

    def seen(made_with: dict[str, str]) -> Observed:
        tried = {
            "train": AttemptSeen({"device": "cpu", "kernels": "torch"}, None),
            "merge": AttemptSeen(made_with, None),
        }
        return Observed(
            states={
                name: StateSeen("trained", weights=name, attempts=(tried[segment.kind],))
                for name, segment in plan.segments.items()
            }
        )

    for made_with in ({"device": "cpu", "kernels": "auto"}, {"device": "cuda"}):
        found = _plan(tmp_path, observed=seen(made_with)).lint
        assert not [item for item in found if item.code == "different-numerics"]
