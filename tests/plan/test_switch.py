"""Whether a stage carries the optimizer's state is science: it names the path, and nothing else is renamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.plan.plan import build_plan
from harness.plan.science import PathBuilder
from harness.study.treatment import SkipSpikes
from tests.plan.build import ADAMW, IDENTITIES, stage, treatment
from tests.plan.studies import identities, study

COLD = replace(ADAMW, state="cold")
LION = replace(ADAMW, name="lion", betas=(0.9, 0.99), eps=None)


def begun(*optimizers: object) -> list[tuple[int, int | None]]:
    """Where each merged piece of stages of 4 batches starts, and where its optimizer's state began, in batches."""
    stages = [stage(f"s{index}", 4, optimizer=optimizer) for index, optimizer in enumerate(optimizers)]
    pieces = PathBuilder(IDENTITIES).pieces(treatment(*stages))
    at = [(piece.start // 512, piece.science.get("optimizer_from")) for piece in pieces]
    return [(start, None if token is None else token // 512) for start, token in at]


def test_a_state_is_named_by_where_it_began_and_pieces_never_merge_across_a_reset() -> None:
    assert begun(ADAMW, ADAMW, ADAMW) == [(0, None)]
    assert begun(ADAMW, replace(ADAMW, state="carried")) == [(0, None)]
    assert begun(ADAMW, COLD, COLD) == [(0, None), (4, 4), (8, 8)]
    assert begun(ADAMW, COLD, ADAMW) == [(0, None), (4, 4)], "a stage that carries is more of the one before"
    assert begun(COLD, ADAMW) == [(0, None)], "token 0 is the base's affair"


def test_an_optimizer_that_takes_over_says_itself_that_it_begins_cold() -> None:
    cold_lion = replace(LION, state="cold")
    assert begun(ADAMW, LION) == begun(ADAMW, cold_lion) == [(0, None), (4, None)]
    assert begun(ADAMW, COLD, LION, cold_lion) == [(0, None), (4, 4), (8, None), (12, 12)]


def test_what_is_off_by_default_renames_nothing() -> None:
    neutral = replace(ADAMW, state="carried", label_smoothing=0.0, skip_spikes=None)
    keys = [PathBuilder(IDENTITIES).pieces(treatment(stage("s", 4, optimizer=one)))[0].key for one in (ADAMW, neutral)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("override", "science"),
    [
        ("label_smoothing=0.1", {"label_smoothing": 0.1}),
        ("skip_spikes={sigma: 6}", {"skip_spikes": {"window": 128, "sigma": 6.0}}),
        ("skip_spikes={window: 16, sigma: 4}", {"skip_spikes": {"window": 16, "sigma": 4.0}}),
        ("skip_spikes=null", {}),
        ("label_smoothing=0", {}),
    ],
)
def test_every_option_reaches_the_science_and_only_there_where_it_says_something(
    tmp_path: Path, override: str, science: dict[str, object]
) -> None:
    plain = build_plan(study(tmp_path, "  []"), identities())
    told = build_plan(study(tmp_path, "  []", overrides=(f"stages.decay.optimizer.{override}",)), identities())
    before, after = (plan.runs[0].pieces[-1].science["optimizer"] for plan in (plain, told))
    assert after == {**before, **science}
    assert (plain.runs[0].path == told.runs[0].path) is (not science)
    assert plain.runs[0].path[0] == told.runs[0].path[0], "the trunk keeps its name"


def test_a_cold_arm_shares_the_trunk_and_differs_by_declaration_alone(tmp_path: Path) -> None:
    items = "  - one_at_a_time: {stages.decay.optimizer.state: [cold]}"
    plan = build_plan(study(tmp_path, items), identities())
    default, cold = (next(run for run in plan.runs if run.arm == arm) for arm in (plan.arms[0].name, plan.arms[1].name))
    assert default.path[0] == cold.path[0] and default.path[-1] != cold.path[-1]
    start = cold.pieces[-1].start
    assert cold.pieces[-1].science["optimizer_from"] == start
    assert {item.code for item in plan.lint} == {"cold-without-warmup"}


def test_carried_spelt_out_is_the_default(tmp_path: Path) -> None:
    plan = build_plan(study(tmp_path, "  - cases: {same: {stages.decay.optimizer.state: carried}}"), identities())
    assert len({run.path[-1] for run in plan.runs}) == len(plan.study.seed_sets)


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("stages.decay.optimizer.state=cold",), ["`decay` begins with a cold optimizer at a rate of 0.001"]),
        (("stages.decay.optimizer={name: lion, lr: 1.0e-3}",), ["`decay` begins with a cold optimizer"]),
        (("stages.decay.optimizer={name: sgd, lr: 1.0e-3}",), []),
        (("stages.decay.optimizer={name: muon, lr: 1.0e-3}",), ["`decay` begins with a cold optimizer"]),
        (("stages.decay.optimizer.state=cold", "stages.decay.lr={shape: linear, warmup: ~2k, to: 0}"), []),
        (("stages.decay.optimizer.state=cold", "stages.decay.lr={shape: linear, from: 1.0e-4, to: 0}"), []),
        (("train.optimizer.state=cold", "stages.stable.lr={shape: constant}"), ["starts with", "`decay` begins"]),
    ],
)
def test_a_stage_that_begins_cold_at_a_high_rate_is_told_so(
    tmp_path: Path, overrides: tuple[str, ...], found: list[str]
) -> None:
    plan = build_plan(study(tmp_path, "  []", overrides=overrides), identities())
    told = [item for item in plan.lint if item.code == "cold-without-warmup"]
    assert len(told) == len(found)
    assert all(start in item.message and item.level == "warning" for item, start in zip(told, found, strict=True))


def test_settings_of_the_window_have_the_published_defaults() -> None:
    assert SkipSpikes() == SkipSpikes(128, 6.0)
