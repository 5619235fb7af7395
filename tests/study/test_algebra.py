from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study.algebra import arm_name, expand
from harness.study.errors import Mistake
from harness.study.units import parse_share
from tests.study.conftest import Load

STUDY: dict[str, Any] = {
    "sources": {"web": {}, "code": {}, "math": {}},
    "train": {"mixture": {"web": 0.6, "code": 0.1, "math": 0.3}},
    "stages": {"stable": {}, "decay": {}},
}
AXES: dict[str, list[Any]] = {
    "stages.decay.lr.shape": ["linear", "cosine", "1-sqrt"],
    "stages.decay.context.length": [64, 128],
    "stages.decay.tokens": ["~0.5B", "~1B", 512],
    "train.optimizer.lr": [1e-3, 6e-3],
    "stages.stable.context": [{"length": 64, "documents": "joined"}],
}


def names(*items: dict[str, Any]) -> list[str]:
    return [arm.name for arm in expand({**STUDY, "ablate": list(items)})]


def axis(path: str, values: list[Any]) -> dict[str, Any]:
    return {path: values}


axes = st.sampled_from(sorted(AXES)).flatmap(
    lambda path: st.lists(st.sampled_from(range(len(AXES[path]))), min_size=1, unique=True).map(
        lambda chosen: axis(path, [AXES[path][index] for index in chosen])
    )
)
grids = st.lists(axes, min_size=1, max_size=3, unique_by=lambda one: next(iter(one))).map(lambda some: {"grid": some})
one_by_one = axes.map(lambda one: {"one_at_a_time": one})
mixtures = st.lists(st.sampled_from([0, 0.1, 0.3, 0.5]), min_size=1, unique=True).map(
    lambda values: {"mixture": {"stage": "decay", "vary": "math", "values": values, "absorb": "web"}}
)
items = grids | one_by_one | mixtures


@given(st.lists(items, max_size=4))
def test_arms_are_unique_safe_as_folders_and_in_a_stable_order(some: list[dict[str, Any]]) -> None:
    found = names(*some)
    assert len(set(found)) == len(found)
    assert found == names(*some)
    assert all(re.fullmatch(r"[A-Za-z0-9._=,+-]{1,100}", name) for name in found)


@given(st.lists(items, max_size=3), items)
def test_an_item_that_is_added_renames_nobody(some: list[dict[str, Any]], more: dict[str, Any]) -> None:
    assert names(*some, more)[: len(names(*some))] == names(*some)


@given(st.lists(items, max_size=4))
def test_items_are_a_union(some: list[dict[str, Any]]) -> None:
    assert set(names(*some)) == {name for item in some for name in names(item)}
    assert names(*some, *some) == names(*some)


@given(grids, st.randoms())
def test_the_order_of_axes_names_the_same_arms(grid: dict[str, Any], random: Any) -> None:
    shuffled = list(grid["grid"])
    random.shuffle(shuffled)
    assert set(names({"grid": shuffled})) == set(names(grid))


@given(axes.map(lambda one: {"grid": [one]}))
def test_an_axis_adds_its_own_change_to_every_name_and_no_other(grid: dict[str, Any]) -> None:
    alone = [set(name.split(",")) for name in names(grid)]
    crossed = [set(name.split(",")) for name in names({"grid": [*grid["grid"], axis("stages.stable.tokens", [512])]})]
    assert [parts - {"stable.tokens=512"} for parts in crossed] == alone
    assert all("stable.tokens=512" in parts for parts in crossed)


def test_a_grid_crosses_mixture_decay_and_context() -> None:
    grid = {
        "grid": [
            {"mixture": {"stage": "decay", "vary": "math", "values": [0.1, 0.3], "absorb": "web"}},
            axis("stages.decay.lr.shape", ["linear", "1-sqrt"]),
            axis("stages.decay.context.length", [64, 128]),
        ],
        "exclude": [{"math": 0.1, "stages.decay.context.length": 128}],
    }
    found = names(grid)
    assert len(found) == 6
    assert "decay.context.length=64,decay.lr.shape=1-sqrt,math=0.1" in found
    assert not any("length=128" in name and "math=0.1" in name for name in found)


def test_zip_goes_along_its_axes_together() -> None:
    item = {"zip": [axis("stages.decay.tokens", [512, 1024]), axis("stages.decay.lr.to", [0, "0.1x"])]}
    assert names(item) == ["decay.lr.to=0,decay.tokens=512", "decay.lr.to=0.1x,decay.tokens=1024"]


def test_cases_have_their_own_names_and_blocks_are_flattened_in_others() -> None:
    assert names({"cases": {"short": {"stages.decay.tokens": 512}}}) == ["short"]
    block = {"length": 64, "rope": {"type": "default", "theta": 1.0e5}}
    assert names({"one_at_a_time": {"stages.decay.context": [block]}}) == [
        "decay.context.length=64,decay.context.rope.type=default,decay.context.rope.theta=100000"
    ]


def test_levels_are_what_the_user_wrote_and_changes_what_that_means(load: Load) -> None:
    study = load("ablate:\n  - mixture: {stage: decay, vary: math, values: [0.5], absorb: web}\n")
    arm = study.arm("math=0.5")
    assert arm.levels == {"math": 0.5}
    assert arm.changes == {"stages.decay.mixture": {"web": 0.4, "code": 0.1, "math": 0.5}}


def test_a_mixture_axis_takes_from_the_source_that_absorbs() -> None:
    item = {"mixture": {"stage": "decay", "vary": "math", "values": [0, 0.5], "absorb": "web"}}
    changes = [arm.declared["stages.decay.mixture"] for arm in expand({**STUDY, "ablate": [item]})]
    assert changes == [{"web": 0.9, "code": 0.1, "math": 0}, {"web": 0.4, "code": 0.1, "math": 0.5}]


def test_a_proportional_mixture_axis_keeps_the_ratio_of_the_others_exactly() -> None:
    item = {"mixture": {"stage": "decay", "vary": "math", "values": [0], "absorb": "proportional"}}
    (arm,) = expand({**STUDY, "ablate": [item]})
    assert arm.declared["stages.decay.mixture"] == {"web": "6/7", "code": "1/7", "math": 0}


def test_names_that_only_differ_in_unsafe_characters_are_refused() -> None:
    item = {"one_at_a_time": {"stages.decay.lr.to": [0]}}
    same = {"cases": {"x": {"stages.decay.lr.to": 0}}}
    assert names(item, same) == ["decay.lr.to=0", "x"]
    with pytest.raises(Mistake, match="two arms have the name"):
        names({"cases": {"x": {"stages.decay.tokens": 512}}}, same)


def test_a_long_name_is_cut_and_stays_unique() -> None:
    long = [arm_name("x" * 150 + end) for end in "ab"]
    assert [len(name) for name in long] == [100, 100]
    assert long[0] != long[1]
    assert re.fullmatch("x{93}-[0-9a-f]{6}", long[0])


def test_default_is_the_first_arm_and_the_unmodified_study(load: Load) -> None:
    study = load("ablate:\n  - one_at_a_time: {stages.decay.lr.to: [0, 0.1x]}\n")
    assert [arm.name for arm in study.arms] == ["default", "decay.lr.to=0", "decay.lr.to=0.1x"]
    assert study.arms[0].changes == {}
    assert study.arms[1].treatment == study.arms[0].treatment


def expanded(*items: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm.name: arm.declared for arm in expand({**STUDY, "ablate": list(items)})}


SHAPES = {"stages.decay.lr.shape": ["linear", "cosine", "constant"]}
ENDS = {"stages.decay.lr.to": [0, "0.1x"]}


def test_an_axis_with_a_condition_varies_only_where_it_holds() -> None:
    grid = [SHAPES, {**ENDS, "when": {"stages.decay.lr.shape": ["linear", "cosine"]}}]
    assert names({"grid": grid}) == [
        "decay.lr.shape=linear,decay.lr.to=0",
        "decay.lr.shape=linear,decay.lr.to=0.1x",
        "decay.lr.shape=cosine,decay.lr.to=0",
        "decay.lr.shape=cosine,decay.lr.to=0.1x",
        "decay.lr.shape=constant",
    ]


def test_a_condition_on_an_axis_that_does_not_apply_does_not_hold() -> None:
    shapes = {**SHAPES, "as": "shape"}
    ends = {**ENDS, "as": "end", "when": {"shape": "linear"}}
    lengths = {"stages.decay.context.length": [64, 128], "as": "len", "when": {"end": 0}}
    assert names({"grid": [shapes, ends, lengths]}) == [
        "len=64,shape=linear,end=0",
        "len=128,shape=linear,end=0",
        "shape=linear,end=0.1x",
        "shape=cosine",
        "shape=constant",
    ]


@given(st.lists(axes, min_size=2, max_size=3, unique_by=lambda one: next(iter(one))), st.data())
def test_when_and_exclude_of_one_rule_part_the_rows(grid: list[dict[str, Any]], data: st.DataObject) -> None:
    path, values = next(iter(grid[0].items()))
    if len(values) < 2:
        return
    rule = {path: data.draw(st.sampled_from(values))}
    kept, rest = names({"grid": grid, "when": rule}), names({"grid": grid, "exclude": [rule]})
    assert set(kept).isdisjoint(rest)
    assert set(kept) | set(rest) == set(names({"grid": grid}))


def test_an_alias_names_the_rows_of_a_zip_and_is_what_exclude_calls_them() -> None:
    ropes = {"stages.decay.context.rope": ["base", {"type": "default", "theta": 1e6}]}
    item = {"zip": [{"stages.decay.context.length": [64, 128]}, ropes], "as": "len"}
    assert expanded(item) == {
        "len=64": {"stages.decay.context.length": 64, "stages.decay.context.rope": "base"},
        "len=128": {
            "stages.decay.context.length": 128,
            "stages.decay.context.rope": {"type": "default", "theta": 1e6},
        },
    }
    assert names({**item, "exclude": [{"len": 64}]}) == ["len=128"]


def test_each_source_is_left_out_and_its_share_absorbed_in_proportion() -> None:
    arms = expanded({"leave_one_out": {"of": "stages.decay.mixture", "absorb": "proportional"}})
    assert {name: changes["stages.decay.mixture"] for name, changes in arms.items()} == {
        "without-web": {"web": 0, "code": 0.25, "math": 0.75},
        "without-code": {"web": "2/3", "code": 0, "math": "1/3"},
        "without-math": {"web": "6/7", "code": "1/7", "math": 0},
    }
    absorbed = expanded({"leave_one_out": {"of": "stages.decay.mixture", "absorb": "web"}})
    assert list(absorbed) == ["without-code", "without-math"]


def test_changes_are_left_out_in_turn_beside_the_arm_that_has_them_all() -> None:
    changes = {"stages.decay.lr.shape": "cosine", "stages.decay.tokens": 512, "train.optimizer.lr": 1e-3}
    arms = expanded({"leave_one_out": {"changes": changes}})
    everything, *others = arms.items()
    assert everything == ("decay.lr.shape=cosine,decay.tokens=512,train.optimizer.lr=0.001", changes)
    assert dict(others) == {
        f"without-{label}": {path: value for path, value in changes.items() if path != left_out}
        for label, left_out in [
            ("train.optimizer.lr=0.001", "train.optimizer.lr"),
            ("decay.tokens=512", "stages.decay.tokens"),
            ("decay.lr.shape=cosine", "stages.decay.lr.shape"),
        ]
    }


def test_each_source_is_added_alone() -> None:
    item = {"add_one": {"of": "stages.decay.mixture", "values": {"math": 0.4, "code": 0.2}, "absorb": "web"}}
    assert {name: changes["stages.decay.mixture"] for name, changes in expanded(item).items()} == {
        "math=0.4": {"web": 0.5, "code": 0.1, "math": 0.4},
        "code=0.2": {"web": 0.5, "code": 0.2, "math": 0.3},
    }
    assert names({"add_one": {"changes": {"stages.decay.tokens": 512, "stages.decay.lr.shape": "cosine"}}}) == [
        "decay.tokens=512",
        "decay.lr.shape=cosine",
    ]


shares = st.lists(st.integers(1, 20), min_size=3, max_size=3)


@given(shares, st.integers(0, 20), st.sampled_from(["web", "proportional"]))
def test_a_group_keeps_its_ratio_and_the_shares_their_sum(parts: list[int], level: int, absorbing: str) -> None:
    mixture = {name: f"{part}/{sum(parts)}" for name, part in zip(("web", "code", "math"), parts, strict=True)}
    study = {**STUDY, "train": {"mixture": mixture}}
    axis = {"stage": "decay", "vary": ["code", "math"], "values": [f"{level}/20"], "absorb": absorbing}
    (arm,) = expand({**study, "ablate": [{"mixture": axis}]})
    mixed = {name: parse_share(share) for name, share in arm.declared["stages.decay.mixture"].items()}
    assert sum(mixed.values()) == 1
    assert mixed["code"] * parts[2] == mixed["math"] * parts[1]
    assert mixed["code"] + mixed["math"] == Fraction(level, 20)
    assert arm.name == f"code+math={level}-20"


CAPPED = {**STUDY, "sources": {"web": {}, "code": {}, "math": {"max_epochs": 4}}}
LENGTHS = {"stages.decay.tokens": 512, "stages.decay.lr.shape": "cosine"}
SHARE = {"stage": "decay", "vary": "math", "values": [0.4], "absorb": "web"}


@pytest.mark.parametrize(
    ("item", "dropped"),
    [
        ({"add_one": {"changes": LENGTHS, "over": "drop"}}, True),
        ({"add_one": {"of": "stages.decay.mixture", "values": {"math": 0.4}, "absorb": "web", "over": "drop"}}, True),
        ({"leave_one_out": {"changes": LENGTHS, "over": "drop"}}, True),
        ({"one_at_a_time": {"stages.decay.tokens": [512]}, "over": "drop"}, True),
        ({"mixture": {**SHARE, "over": "drop"}, "over": "error"}, True),
        ({"mixture": {**SHARE, "over": "error"}, "over": "drop"}, False),
        ({"grid": [{"mixture": {**SHARE, "over": "error"}}], "over": "drop"}, False),
        ({"add_one": {"changes": LENGTHS, "over": "error"}, "over": "drop"}, False),
    ],
)
def test_over_acts_wherever_it_may_stand_and_the_inner_one_wins(item: dict[str, Any], dropped: bool) -> None:
    assert {arm.drop for arm in expand({**CAPPED, "ablate": [item]})} == {dropped}


def test_of_two_items_that_yield_one_arm_the_one_that_refuses_wins() -> None:
    items = [{"one_at_a_time": {"stages.decay.tokens": [512]}, "over": over} for over in ("drop", "error")]
    assert [[arm.drop for arm in expand({**CAPPED, "ablate": some})] for some in (items, items[::-1])] == [[False]] * 2


@pytest.mark.parametrize(
    ("item", "place"),
    [
        ({"cases": {"short": LENGTHS}, "over": "drop"}, ("ablate", 0, "over")),
        ({"add_one": {"changes": LENGTHS, "over": "drop"}}, ("ablate", 0, "add_one", "over")),
        ({"grid": [{"mixture": {**SHARE, "over": "drop"}}]}, ("ablate", 0, "grid", 0, "mixture", "over")),
    ],
)
def test_dropping_is_refused_where_no_source_has_a_cap(item: dict[str, Any], place: tuple[Any, ...]) -> None:
    with pytest.raises(Mistake, match="drops nothing: no source has a `max_epochs`") as caught:
        expand({**STUDY, "ablate": [item]})
    assert caught.value.path == place
