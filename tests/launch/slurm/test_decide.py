"""What is done with each item now, from what is wanted and what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.launch.slurm.classes import End
from harness.launch.slurm.decide import Decision, decide
from harness.launch.work import Work

BASE = Work("base", "b", None, 0, "base")
TRUNK = Work("train", "t", "b", 10, "trunk")
LEAF, OTHER = Work("train", "l", "t", 5, "leaf"), Work("train", "o", "t", 5, "other")
SCORE = Work("evaluate", "l", "l", 0, "evaluate leaf")
ALL = [BASE, TRUNK, LEAF, OTHER, SCORE]


def decided(
    under_way: Sequence[str] = (),
    tries: Mapping[str, Sequence[End]] | None = None,
    cancelled: Sequence[str] = (),
    group: str | None = None,
    **more: Any,
) -> Decision:
    return decide(ALL, under_way, tries or {}, lambda item: more.get(item.state), cancelled, lambda item: group)


def ids(found: Decision) -> list[str]:
    return [item.id for item in found.ready]


def test_everything_that_is_wanted_is_submitted_parents_first() -> None:
    assert ids(decided()) == [item.id for item in ALL] and decided().held == {}


def test_what_is_in_the_queue_is_left_alone_and_its_children_are_submitted() -> None:
    assert ids(decided(under_way=["base:b", "train:t"])) == ["train:l", "train:o", "evaluate:l"]


def test_a_held_item_holds_all_that_starts_from_it_and_nothing_else() -> None:
    found = decided(tries={"train:l": [End("user", "no such column", 0)]})
    assert ids(found) == ["base:b", "train:t", "train:o"]
    assert (found.held["train:l"].kind, found.held["train:l"].reason) == ("user", "no such column")
    assert (found.held["evaluate:l"].kind, found.held["evaluate:l"].reason) == ("parent", "waits for leaf")


def test_cancelled_stays_cancelled_with_what_waits_for_it() -> None:
    found = decided(cancelled=["train:t"])
    assert ids(found) == ["base:b"]
    assert {held.kind for held in found.held.values()} == {"cancelled", "parent"}


def test_a_group_that_is_held_says_why() -> None:
    found = decided(group="3 runs failed alike")
    assert ids(found) == [] and found.held["base:b"].reason == "3 runs failed alike"


def test_a_failure_that_may_be_tried_again_is_ready_with_its_remedy() -> None:
    found = decided(tries={"train:l": [End("oom_gpu", "CUDA out of memory", 0)]})
    assert found.verdicts["train:l"].halvings == 1 and "train:l" in ids(found)


def test_preempted_work_goes_on_however_often() -> None:
    ends = [End("preempted", "told to stop", number, at=number) for number in range(9)]
    assert "train:l" in ids(decided(tries={"train:l": ends}))


def test_a_merge_is_held_with_any_of_its_parts_and_what_is_made_of_it_too() -> None:
    soup = Work("merge", "m", "l", 0, "soup", also=("o", "x"))
    items = [*ALL, soup, Work("evaluate", "m", "m", 0, "evaluate soup")]
    found = decide(items, (), {}, lambda item: None, ["train:o"], lambda item: None)
    assert found.held["merge:m"].reason == found.held["evaluate:m"].reason == "waits for other"
    assert "evaluate:l" in ids(found) and "train:l" in ids(found)
