from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest

from harness.study import Context, Optimizer, Rope, SeedSet, Stage, StudyError
from tests.study.conftest import Load

GRID = """
ablate:
  - grid:
      - mixture: {stage: decay, vary: math, values: [0, 0.1, 0.3], absorb: web}
      - stages.decay.lr.to: [0, 0.1x]
      - stages.stable.context.length: [64, 128]
"""


def stage(load: Load, more: str = "", arm: str = "default", *overrides: str) -> Stage:
    """The stage `decay` of an arm."""
    return load(more, *overrides).arm(arm).treatment.stages[1]


def test_a_stage_is_resolved_with_what_it_inherits_and_the_defaults(load: Load) -> None:
    decay = stage(load)
    assert decay.tokens == 10240
    assert decay.batch_tokens == 512
    assert decay.mixture == (("web", Fraction(3, 5)), ("code", Fraction(1, 10)), ("math", Fraction(3, 10)))
    assert decay.context == Context(128, "masked", "concat", Rope("base", None))
    assert decay.precision == "fp32"
    assert decay.optimizer == Optimizer("adamw", 6e-3, (0.9, 0.95), 1e-8, 0.1, 1.0)
    assert decay.lr is not None
    assert (decay.lr.shape, decay.lr.start, decay.lr.end, decay.lr.warmup) == ("linear", None, 0.0, 0)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("stages.decay.context.documents=joined", "context", Context(128, "joined")),
        (
            "stages.decay.context.rope={type: default, theta: 1e6}",
            "context",
            Context(128, rope=Rope("default", 1e6)),
        ),
        ("stages.decay.precision=bf16-mixed", "precision", "bf16-mixed"),
        ("stages.decay.mixture={math: 1/3, web: 2/3}", "mixture", (("web", Fraction(2, 3)), ("math", Fraction(1, 3)))),
        ("stages.decay.mixture={math: 0, web: 1}", "mixture", (("web", Fraction(1)),)),
        ("stages.decay.batch_tokens=2^10", "batch_tokens", 1024),
        ("stages.decay.tokens=~10k", "tokens", 10240),
    ],
)
def test_every_field_of_a_stage_reaches_the_treatment(load: Load, override: str, field: str, value: object) -> None:
    assert getattr(stage(load, "", "default", override), field) == value


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("betas=[0.8, 0.9]", {"betas": (0.8, 0.9)}),
        ("eps=1e-6", {"eps": 1e-6}),
        ("weight_decay=0", {"weight_decay": 0.0}),
        ("clip=null", {"clip": None}),
        ("clip=0.5", {"clip": 0.5}),
        ("lr=1e-3", {"lr": 1e-3}),
    ],
)
def test_every_field_of_the_optimizer_reaches_the_treatment(
    load: Load, override: str, changed: dict[str, object]
) -> None:
    plain = stage(load).optimizer
    assert stage(load, "", "default", f"train.optimizer.{override}").optimizer == dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def test_a_multiple_is_taken_of_the_stage_s_own_peak(load: Load) -> None:
    lr = stage(load, "", "default", "stages.decay.optimizer.lr=1e-3", "stages.decay.lr.to=0.1x").lr
    assert lr is not None and lr.end == 1e-4


@pytest.mark.parametrize(
    "decay", ["{shape: linear, to: 0.1x}", "{shape: linear, from: 1x, to: 0}", "{shape: constant, from: 0.5x}"]
)
def test_a_stage_may_have_a_rate_of_its_own_where_its_schedule_is_a_multiple_of_it(load: Load, decay: str) -> None:
    declared = stage(load, "", "default", "stages.decay.optimizer.lr=1e-3", f"stages.decay.lr={decay}")
    assert declared.optimizer.lr == 1e-3


@pytest.mark.parametrize("rate", ["6e-3", "1e-3"])
def test_a_stage_may_repeat_the_rate_that_it_inherits_or_begins_at(load: Load, rate: str) -> None:
    stable = ("stages.stable.lr={shape: linear, to: 1e-3}",)
    assert stage(load, "", "default", *stable, f"stages.decay.optimizer.lr={rate}").optimizer.lr == float(rate)


def test_rest_is_what_the_total_leaves_in_every_arm(load: Load) -> None:
    stages = """
total: ~1M
stages:
  stable: {tokens: rest, lr: {shape: constant}}
  decay: {tokens: ~0.1M, lr: {shape: linear, to: 0}}
"""
    study = load("ablate: [{one_at_a_time: {stages.decay.tokens: [~0.2M, ~0.4M]}}]\n", stages=stages)
    assert [arm.treatment.tokens for arm in study.arms] == [999_936] * 3
    assert [arm.treatment.stages[0].tokens for arm in study.arms] == [900_096, 799_744, 600_064]
    assert study.notes[:2] == (
        "stages.decay.tokens: ~0.1M rounded to 99,840 (195 batches of 512)",
        "total: ~1M rounded to 999,936, of which `stable` takes 900,096",
    )


def test_one_schedule_over_all_stages_replaces_those_of_the_stages_in_its_arm_only(load: Load) -> None:
    study = load("ablate: [{cases: {one: {lr: {shape: cosine, to: 0.1x, warmup: ~5k}}}}]\n")
    one = study.arm("one").treatment
    assert one.lr is not None and (one.lr.shape, one.lr.end, one.lr.warmup) == ("cosine", 6e-4, 5120)
    assert [stage.lr for stage in one.stages] == [None, None]
    default = study.arm("default").treatment
    assert default.lr is None and all(stage.lr is not None for stage in default.stages)


def test_equal_stages_are_one_object(load: Load) -> None:
    study = load(GRID)
    assert len(study.arms) == 13
    stages = [stage for arm in study.arms for stage in arm.treatment.stages]
    assert len({id(stage) for stage in stages}) == len(set(stages)) == 2 + 6


def test_arms_that_write_the_same_stage_differently_share_it(load: Load) -> None:
    study = load(
        "ablate: [{cases: {a: {stages.decay.lr.to: 6e-4}, b: {stages.decay.lr: {shape: linear, to: 0.1x}}}}]\n"
    )
    assert study.arm("a").treatment.stages[1] is study.arm("b").treatment.stages[1]


def test_changes_of_what_stages_inherit_reach_the_stages(load: Load) -> None:
    study = load("ablate: [{one_at_a_time: {train.context.length: [64]}}]\n")
    lengths = [stage.context.length for stage in study.arm("train.context.length=64").treatment.stages]
    assert lengths == [64, 64]


def test_changes_of_the_base_reach_the_treatment(load: Load) -> None:
    study = load(
        "ablate: [{cases: {warm: {base.lr: 1e-3, stages.stable.lr.from: base}}}]\n",
        "base.model=some/folder",
    )
    assert study.arm("default").treatment.base.lr is None
    base = study.arm("warm").treatment.base
    assert (base.model, base.lr) == ({"path": "some/folder"}, 1e-3)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ("{}", [SeedSet("s1", 1, 1)]),
        ("{data: [1, 2]}", [SeedSet("d1", 1, 1), SeedSet("d2", 1, 2)]),
        ("{init: [3]}", [SeedSet("i3", 3, 1)]),
        ("{init: [1, 2], data: [5, 6], pair: zip}", [SeedSet("i1-d5", 1, 5), SeedSet("i2-d6", 2, 6)]),
        ("{init: [1, 2], data: [5]}", [SeedSet("i1-d5", 1, 5), SeedSet("i2-d5", 2, 5)]),
        ("{data: [1, 2], from: decay}", [SeedSet("d1", 1, 1, "decay"), SeedSet("d2", 1, 2, "decay")]),
    ],
)
def test_seeds_become_replicates(load: Load, seeds: str, expected: list[SeedSet]) -> None:
    assert list(load(f"seeds: {seeds}\n").seed_sets) == expected


def test_built_in_sources_have_their_parameters(load: Load) -> None:
    sources = load("", "sources.math.max_epochs=4").sources
    assert (sources["math"].documents, sources["math"].seed, sources["math"].max_epochs) == (20_000, 0, 4.0)
    assert (sources["web"].documents, sources["web"].held_out) == (None, 0.02)


def test_a_mistake_that_only_an_arm_makes_names_it_at_its_line(load: Load) -> None:
    with pytest.raises(StudyError) as caught:
        load("ablate:\n  - cases:\n      long:\n        stages.decay.lr.warmup: 20480\n")
    assert "study.yaml:23:33: stages.decay.lr.warmup: in arm `long`, 20,480 tokens do not fit" in str(caught.value)


def test_a_grid_resolves_every_distinct_stage_once(load: Load) -> None:
    values = ", ".join(f"{index}e-5" for index in range(200))
    study = load(
        f"ablate:\n  - grid:\n      - stages.decay.lr.to: [{values}]\n      - stages.stable.context.length: [64, 128]\n"
    )
    assert len(study.arms) == 401
    assert len({id(arm.treatment.stages[0]) for arm in study.arms}) == 2
    assert len({id(arm.treatment.stages[1]) for arm in study.arms}) == 200
    assert len({id(arm.treatment.base) for arm in study.arms}) == 1


def test_windows_of_held_out_text_need_no_longest_item(load: Load) -> None:
    assert load("eval: {held_out: {window: 64}, continuations: 0}").spec.eval.max_length is None
    for more in ("held_out: {window: 64}", "held_out: {window: 64}, continuations: 0, suites: [smoke@1]"):
        with pytest.raises(StudyError, match=r"eval\.max_length: is missing"):
            load(f"eval: {{{more}}}")
