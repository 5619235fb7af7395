from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from harness.study.includes import change, inherit, merge

names = st.sampled_from("abcd")
scalars = st.integers(0, 9) | st.sampled_from(["x", "y"])
blocks = st.dictionaries(names, scalars | st.dictionaries(names, scalars | st.dictionaries(names, scalars)))
paths = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map(tuple)

TRAIN = {
    "mixture": {"web": 0.9, "math": 0.1},
    "context": {"length": 128, "rope": {"type": "default", "theta": 1e4}},
    "lr": {"shape": "linear", "to": 0, "warmup": 512},
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
}


@given(blocks, blocks)
def test_the_newer_value_wins_and_nothing_is_changed_in_place(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = copy.deepcopy((old, new))
    merged = merge(old, new)
    assert set(merged) == set(old) | set(new)
    assert all(merged[key] == old[key] for key in old if key not in new)
    assert all(merged[key] == value for key, value in new.items() if not isinstance(value, dict))
    assert (old, new) == before


@given(blocks)
def test_merging_twice_is_merging_once(block: dict[str, Any]) -> None:
    assert merge(block, {}) == block
    assert merge(merge({}, block), block) == block


@given(blocks, blocks, blocks)
def test_the_order_of_grouping_does_not_matter(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    if _forms_agree(first, second) and _forms_agree(second, third) and _forms_agree(first, third):
        assert merge(merge(first, second), third) == merge(first, merge(second, third))


def _forms_agree(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both have a mapping, or both a value, wherever both have something."""
    return all(
        isinstance(one[key], dict) == isinstance(other[key], dict)
        and (not isinstance(one[key], dict) or _forms_agree(one[key], other[key]))
        for key in set(one) & set(other)
    )


@given(blocks, paths, scalars)
def test_a_change_sets_its_path_and_shares_everything_else(
    block: dict[str, Any], path: tuple[str, ...], value: object
) -> None:
    changed: Any = change(block, path, value)
    assert all(changed[key] is block[key] for key in block if key != path[0])
    for key in path:
        changed = changed[key]
    assert changed == value


def test_mixtures_are_replaced_whole() -> None:
    assert inherit(TRAIN, {"mixture": {"math": 1}})["mixture"] == {"math": 1}


def test_rope_settings_are_replaced_whole_and_the_rest_of_the_context_is_kept() -> None:
    stage = inherit(TRAIN, {"context": {"rope": {"type": "default"}}})
    assert stage["context"] == {"length": 128, "rope": {"type": "default"}}


def test_a_schedule_that_names_its_shape_is_replaced_whole_and_another_merges() -> None:
    assert inherit(TRAIN, {"lr": {"shape": "constant"}})["lr"] == {"shape": "constant"}
    assert inherit(TRAIN, {"lr": {"to": 1e-4}})["lr"] == {"shape": "linear", "to": 1e-4, "warmup": 512}


def test_lists_are_replaced_whole_and_blocks_merge_by_name() -> None:
    assert inherit(TRAIN, {"optimizer": {"betas": [0.8, 0.9]}})["optimizer"] == {"lr": 1e-3, "betas": [0.8, 0.9]}


def test_a_source_or_stage_that_is_called_mixture_or_lr_still_merges() -> None:
    assert merge({"stages": {"lr": {"tokens": 1}}}, {"stages": {"lr": {"shape": 2}}})["stages"]["lr"] == {
        "tokens": 1,
        "shape": 2,
    }


def test_one_entry_of_an_inherited_mixture_is_changed_in_the_stage_alone() -> None:
    study = {"train": TRAIN, "stages": {"decay": {}}}
    changed = change(study, ("stages", "decay", "mixture", "web"), 0.5)
    assert changed["stages"]["decay"]["mixture"] == {"web": 0.5, "math": 0.1}
    assert changed["train"] is TRAIN


def test_changing_the_shape_alone_keeps_what_the_stage_inherits() -> None:
    study = {"train": TRAIN, "stages": {"decay": {"lr": {"to": 1e-4}}}}
    changed = change(study, ("stages", "decay", "lr", "shape"), "cosine")
    effective = inherit(changed["train"], changed["stages"]["decay"])
    assert effective["lr"] == {"shape": "cosine", "to": 1e-4, "warmup": 512}


def test_one_schedule_over_all_stages_removes_those_of_the_stages() -> None:
    study = {"train": TRAIN, "stages": {"stable": {"tokens": 1}, "decay": {"lr": {"shape": "constant"}}}}
    changed = change(study, ("lr",), {"shape": "cosine", "to": 0})
    assert "lr" not in changed["train"]
    assert changed["stages"] == {"stable": {"tokens": 1}, "decay": {}}
