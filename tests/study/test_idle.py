"""What is written and taken by nothing is refused: ignored, it would make an arm the same arm under another name."""

from __future__ import annotations

import re

import pytest

from harness.study.errors import StudyError
from tests.study.conftest import STAGES, Load

TWICE = """
stages:
  stable: {tokens: 51200, mixture: {web: 1}, lr: {shape: constant, warmup: 5120}}
  decay: {tokens: 10240, mixture: {web: 0.5, math: 0.5}, lr: {shape: linear, to: 0}}
"""
ARMS = "ablate: [{one_at_a_time: {CHANGES}}]\n"


def arms(changes: str) -> str:
    return ARMS.replace("{CHANGES}", f"{{{changes}}}")


def refused(load: Load, message: str, *study: str, stages: str = STAGES) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        load(*study, stages=stages)


def test_a_rate_of_a_later_stage_needs_a_schedule_that_names_it(load: Load) -> None:
    said = "stages.decay.optimizer.lr: is taken by nothing: the schedule of `decay` begins at the rate where `stable`"
    refused(load, said, "", "stages.decay.optimizer.lr=1e-3")
    refused(load, "in arm `decay.optimizer.lr=0.001`, is taken", arms("stages.decay.optimizer.lr: [1e-3]"))
    load("", "stages.decay.optimizer.lr=1e-3", "stages.decay.lr.to=0.1x")
    load("", "stages.decay.optimizer.lr=1e-3", "stages.decay.lr.from=1x")
    load("", "stages.decay.optimizer.lr=6e-3")  # what it is anyway


def test_an_arm_that_changes_what_no_stage_inherits_is_refused(load: Load) -> None:
    said = "in arm `train.mixture.web=1`, `train.mixture` is inherited by no stage"
    refused(load, said, arms("train.mixture: [{web: 1}]"), stages=TWICE)
    assert len(load(arms("train.mixture: [{web: 1}]")).arms) == 2
    assert len(load(arms("train.context.length: [256]"), stages=TWICE).arms) == 2


def test_a_value_on_the_command_line_that_no_stage_inherits_is_refused(load: Load) -> None:
    said = "--set train.mixture={web: 1}: train.mixture.web: is inherited by no stage"
    refused(load, said, "", "train.mixture={web: 1}", stages=TWICE)
    load("", "train.mixture={web: 1}", "train.optimizer.betas=[0.5, 0.9]")


def test_an_arm_that_differs_in_a_rate_that_no_schedule_uses_is_refused(load: Load) -> None:
    stages = STAGES.replace("{shape: constant,", "{shape: constant, from: 3e-3,")
    refused(
        load, "in arm `train.optimizer.lr=0.002`, changes nothing", arms("train.optimizer.lr: [2e-3]"), stages=stages
    )
    assert len(load(arms("train.optimizer.lr: [2e-3]")).arms) == 2
    of_base = ("base.model=here", "base.tokenizer=here")
    for key, value, used in (
        ("lr", "1e-3", "stages.stable.lr.from=base"),
        ("tokens_seen", "10B", "stages.stable.lr.shape=inverse-sqrt"),
    ):
        changes = arms(f"base.{key}: [{value}]")
        refused(load, f"in arm `base.{key}={value.replace('1e-3', '0.001')}`, changes nothing", changes, *of_base)
        assert len(load(changes, *of_base, f"base.{key}={value.replace('1', '2')}", used).arms) == 2


def test_a_warm_up_of_one_batch_has_no_rate_where_it_begins(load: Load) -> None:
    one = ("stages.stable.lr.warmup=512", "stages.stable.lr.warmup_from=1e-4")
    refused(load, "stages.stable.lr.warmup_from: is never the rate: a warm-up of one batch (512 tokens)", "", *one)
    load("", "stages.stable.lr.warmup=1024", one[1])


def test_an_axis_beside_a_mixture_may_say_when_it_applies(load: Load) -> None:
    mixture = "{mixture: {stage: decay, vary: math, values: [0.1, 0.5], absorb: web}}"
    axis = "{stages.decay.tokens: [5120, 20480], when: {math: 0.5}}"
    found = [arm.name for arm in load(f"ablate: [{{grid: [{mixture}, {axis}]}}]\n").arms]
    assert found == ["default", "math=0.1", "math=0.5,decay.tokens=5120", "math=0.5,decay.tokens=20480"]


def test_a_limit_of_items_needs_tasks_that_have_items(load: Load) -> None:
    held_out = "eval: {max_length: 128, limit: 4, held_out: {window: 128}MORE}\n"
    refused(load, "eval.limit: is of items of tasks, and there is none", held_out.replace("MORE", ""))
    load(held_out.replace("MORE", ", suites: [quickstart@1]"))
    load(held_out.replace("MORE", "").replace("limit: 4", "limit: null"))
