"""What has run: each finding is planted in what was observed, and keeps quiet where the planted thing is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harness.plan.fingerprint import state_at
from harness.plan.lint import Lint
from harness.plan.observed import AttemptSeen, EvaluationSeen, Observed, StateSeen
from harness.plan.plan import Plan, PlanRun, build_plan
from tests.plan.studies import TASK, identities, study

ITEMS = "  - one_at_a_time: {stages.decay.lr.shape: [cosine]}"
ARM = "decay.lr.shape=cosine"
TESTED = {
    "different-tokenizer",
    "different-evaluation",
    "different-numerics",
    "different-code",
    "same-declaration-different-results",
    "control-failed",  # tests/launch/test_controls.py
}
NUMERICS = {"device": "cpu", "threads": "1", "micro_batch": "null", "torch": "2.13.0", "kernels": "torch", "world": "1"}
FACTS = {"limit": "null", "versions.lm_eval": "0.4.13", "numerics.threads": "1"}


def done(state: str, numerics: Mapping[str, str] = NUMERICS, code: str = "a", **fields: object) -> StateSeen:
    tried = (AttemptSeen(numerics, code * 64),)
    seen = StateSeen("trained", "weights-" + state, code=code * 64, attempts=tried, tokenizer="t" * 64)
    return replace(seen, **{"of_tokenizer": "t" * 64, **fields})  # type: ignore[arg-type]


def planned(
    folder: Path, observed: Observed = Observed(), compare: str = "allow: {default: [no-control]}", share: bool = True
) -> Plan:
    return build_plan(study(folder, ITEMS, compare), identities(), None, [TASK], observed, share)


def whole(plan: Plan) -> Observed:
    """Everything of `plan` trained and evaluated in one way."""
    states = {name: done(name) for name in plan.segments}
    results = tuple(EvaluationSeen("weights-" + run.path[-1], TASK.key, TASK.task, FACTS) for run in plan.runs)
    return Observed(states, results=results)


def leaf(plan: Plan, arm: str = ARM, seeds: str = "d1") -> str:
    return next(run.path[-1] for run in plan.runs if run.name == f"{arm}/{seeds}")


def found(folder: Path, observed: Observed, code: str, compare: str = "allow: {default: [no-control]}") -> list[Lint]:
    return [item for item in planned(folder, observed, compare).lint if item.code == code]


def planted(observed: Observed, state: str, seen: StateSeen) -> Observed:
    return replace(observed, states={**observed.states, state: seen})


def test_a_folder_in_which_everything_was_done_in_one_way_has_no_findings(tmp_path: Path) -> None:
    assert planned(tmp_path, whole(planned(tmp_path))).lint == []


@pytest.mark.parametrize("field", NUMERICS)
def test_every_field_of_numerics_that_differs_between_two_arms_is_named_with_both_values(
    tmp_path: Path, field: str
) -> None:
    plan = planned(tmp_path)
    state = leaf(plan)
    seen = planted(whole(plan), state, done(state, {**NUMERICS, field: "other"}))
    (item,) = found(tmp_path, seen, "different-numerics")
    assert (item.level, item.arm) == ("warning", ARM)
    assert f"{field} {', '.join(sorted({NUMERICS[field], 'other'}))}; baseline {NUMERICS[field]}" in item.message
    assert not found(
        tmp_path, seen, "different-numerics", f"allow: {{default: [no-control], {ARM}: [different-numerics]}}"
    )


def test_numerics_that_differ_between_seeds_and_not_between_arms_are_no_finding(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    seen = whole(plan)
    for arm in ("default", ARM):
        state = leaf(plan, arm, "d2")
        seen = planted(seen, state, done(state, {**NUMERICS, "threads": "2"}))
    assert not found(tmp_path, seen, "different-numerics")
    state = leaf(plan, "default", "d2")
    assert found(tmp_path, planted(seen, state, done(state)), "different-numerics"), "now seed 2 is paired with another"


def test_two_code_snapshots_among_compared_arms_are_named(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    state = leaf(plan)
    seen = planted(whole(plan), state, done(state, code="b"))
    (item,) = found(tmp_path, seen, "different-code")
    assert (item.level, item.arm) == ("warning", ARM)
    assert "a" * 12 in item.message and "b" * 12 in item.message
    assert not found(tmp_path, seen, "different-code", f"allow: {{default: [no-control], {ARM}: [different-code]}}")


def test_code_of_a_trunk_that_both_arms_share_is_no_finding(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    trunk = plan.runs[0].path[0]
    assert not found(tmp_path, planted(whole(plan), trunk, done(trunk, code="b")), "different-code")


def test_weights_with_another_tokenizer_beside_them_cannot_be_compared(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    state = leaf(plan)
    seen = planted(whole(plan), state, done(state, tokenizer="u" * 64))
    (item,) = found(tmp_path, seen, "different-tokenizer")
    assert (item.level, item.arm) == ("error", ARM)
    assert "u" * 12 in item.message and "t" * 12 in item.message
    assert not found(
        tmp_path, seen, "different-tokenizer", f"allow: {{default: [no-control], {ARM}: [different-tokenizer]}}"
    )


def test_a_tokenizer_that_was_replaced_after_states_were_trained_is_told_until_all_are_trained_anew(
    tmp_path: Path,
) -> None:
    before = whole(planned(tmp_path))
    after = build_plan(study(tmp_path, ITEMS), identities(tokenizer="n"), None, [TASK], before)
    (item,) = [item for item in after.lint if item.code == "different-tokenizer"]
    assert (item.level, item.arm) == ("warning", "")
    assert f"{len(before.states)} trained states" in item.message
    assert "t" * 12 in item.message and "n" * 12 in item.message
    anew = {name: done(name, of_tokenizer="n" * 64, tokenizer="n" * 64) for name in after.segments}
    both = replace(before, states={**before.states, **anew})
    last = build_plan(study(tmp_path, ITEMS), identities(tokenizer="n"), None, [TASK], both)
    assert "different-tokenizer" not in {item.code for item in last.lint}


def test_results_of_one_task_with_other_versions_or_settings_are_named(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    seen = whole(plan)
    weights = "weights-" + leaf(plan)
    changed = tuple(
        replace(one, facts={**FACTS, "versions.lm_eval": "0.4.12"}) if one.weights == weights else one
        for one in seen.results
    )
    (item,) = found(tmp_path, replace(seen, results=changed), "different-evaluation")
    assert (item.level, item.arm) == ("warning", ARM)
    assert "smoke@1: smoke: versions.lm_eval 0.4.12; baseline 0.4.13" in item.message
    allowed = f"allow: {{default: [no-control], {ARM}: [different-evaluation]}}"
    assert not found(tmp_path, replace(seen, results=changed), "different-evaluation", allowed)


def test_evaluations_on_another_machine_class_are_numerics(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    seen, weights = whole(plan), "weights-" + leaf(plan)
    changed = tuple(
        replace(one, facts={**FACTS, "numerics.threads": "4"}) if one.weights == weights else one
        for one in seen.results
    )
    (item,) = found(tmp_path, replace(seen, results=changed), "different-numerics")
    assert "smoke@1: smoke: numerics.threads 4; baseline 1" in item.message
    assert not found(tmp_path, replace(seen, results=changed), "different-evaluation")


def test_a_changed_suite_of_which_only_some_arms_have_results_yet_is_told(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    seen, weights = whole(plan), "weights-" + leaf(plan)
    old = tuple(
        replace(one, key="o" * 64, facts={**FACTS, "limit": "20"}) if one.weights == weights else one
        for one in seen.results
    )
    (item,) = found(tmp_path, replace(seen, results=old), "different-evaluation")
    assert item.arm == ARM and "limit 20 → null" in item.message
    beside = replace(seen, results=(*seen.results, *old))
    assert not found(tmp_path, beside, "different-evaluation"), "evaluated anew, the old result does not matter"


def test_updates_that_were_computed_twice_and_differ_are_told_with_their_place(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    state = leaf(plan)
    seen = planted(whole(plan), state, done(state, disagreements=(90_112, 90_624)))
    (item,) = found(tmp_path, seen, "same-declaration-different-results")
    assert (item.level, item.arm) == ("warning", ARM)
    assert "2 updates of `decay`" in item.message and "90,112" in item.message
    allowed = f"allow: {{default: [no-control], {ARM}: [same-declaration-different-results]}}"
    assert not found(tmp_path, seen, "same-declaration-different-results", allowed)


def test_runs_without_sharing_that_are_equal_up_to_a_token_must_have_equal_weights_there(tmp_path: Path) -> None:
    plan = planned(tmp_path, share=False)

    def science(run: PlanRun, index: int) -> str:
        return state_at(run.base, run.pieces, run.data_seeds, plan.segments[run.path[index]].tokens_to)

    states = {
        name: replace(done(name), weights="weights-" + science(run, index))
        for run in plan.runs
        for index, name in enumerate(run.path)
    }
    assert planned(tmp_path, Observed(states), share=False).lint == []
    trunk = next(run.path[0] for run in plan.runs if run.name == f"{ARM}/d1")
    seen = Observed({**states, trunk: replace(states[trunk], weights="other")})
    lint = planned(tmp_path, seen, share=False).lint
    assert [(item.code, item.arm) for item in lint] == [("same-declaration-different-results", ARM)]
    assert f"{ARM}/d1 and default/d1 are declared equal up to token" in lint[0].message
