"""Chains and batches: every item once, parents first, few calls; and `launch.parallel` shared out among arrays."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.launch.slurm.batches import CALLS, Batch, Canaries, Limits, batches
from harness.launch.slurm.chains import Chain, chains
from harness.launch.slurm.throttle import shares
from harness.launch.work import Work


def train(state: str, needs: str | None) -> Work:
    return Work("train", state, needs, 10, state)


def evaluate(state: str) -> Work:
    return Work("evaluate", state, state, 0, f"evaluate {state}")


def study(arms: int, seeds: int, evaluated: tuple[str, ...] = ("stable", "decay", "long")) -> list[Work]:
    """A trunk a seed, and for every arm decay → long, each evaluated where `evaluated` says."""
    items = [Work("base", "base", None, 0, "base")]
    ends = []
    for seed in range(seeds):
        items.append(train(f"stable{seed}", "base"))
        ends += [f"stable{seed}"] * ("stable" in evaluated)
        for arm in range(arms):
            items += [train(f"decay{arm}.{seed}", f"stable{seed}"), train(f"long{arm}.{seed}", f"decay{arm}.{seed}")]
            ends += [f"{stage}{arm}.{seed}" for stage in ("decay", "long") if stage in evaluated]
    return items + [evaluate(state) for state in ends]


def one_group(item: Work) -> str:
    return "gpu"


def by_kind(item: Work) -> str:
    return "cpu" if item.kind == "evaluate" else "gpu"


def by_stage(item: Work) -> str:
    return "big" if item.state.startswith("long") else "small"


@pytest.mark.parametrize("group", [one_group, by_kind, by_stage])
def test_thirty_six_arms_with_three_seeds_need_at_most_eight_calls(group: object) -> None:
    found = batches(chains(study(36, 3), group))  # type: ignore[arg-type]
    assert len(found) + 1 <= CALLS == 8


def test_a_linear_chain_and_its_evaluations_are_one_task() -> None:
    items = [train("a", None), train("b", "a"), evaluate("a"), evaluate("b")]
    (chain,) = chains(items, one_group)
    assert [item.id for item in chain.items] == ["train:a", "train:b", "evaluate:a", "evaluate:b"]


def test_other_resources_end_a_chain_and_an_array_waits_task_by_task() -> None:
    items = [Work("base", "base", None, 0, "base")]
    for arm in range(12):
        items += [train(f"decay{arm}", "base"), train(f"long{arm}", f"decay{arm}")]
    found = batches(chains(items, by_stage), canaries=Canaries({"big", "small"}))
    assert [batch.how for batch in found] == ["afterok", "afterok", "aftercorr"]
    assert [len(batch.tasks) for batch in found] == [1, 12, 12]
    decay, long = found[1], found[2]
    for index, chain in long.tasks.items():
        assert chain.needs == decay.tasks[index].items[-1].state


def test_an_evaluation_does_not_keep_children_waiting() -> None:
    found = chains([train("a", None), evaluate("a"), train("b", "a"), train("c", "a")], one_group)
    assert [[item.id for item in chain.items] for chain in found] == [
        ["train:a"],
        ["train:b"],
        ["train:c"],
        ["evaluate:a"],
    ]


def test_the_first_task_of_resources_goes_alone_and_the_rest_is_held_for_it() -> None:
    found = batches(chains([train(f"s{n}", None) for n in range(5)], one_group))
    assert [(len(batch.tasks), batch.canary) for batch in found] == [(1, True), (4, False)]
    assert found[1].held_for is found[0]
    again = batches(chains([train(f"s{n}", None) for n in range(5)], one_group), canaries=Canaries({"gpu"}))
    assert [(len(batch.tasks), batch.canary, batch.held_for) for batch in again] == [(5, False, None)]
    waits = batches(chains([train("s", None)], one_group), canaries=Canaries(waiting={"gpu": 7}))
    assert [(batch.canary, batch.held_for) for batch in waits] == [(False, 7)]


def test_what_comes_after_the_canary_is_not_held() -> None:
    """It could not start before the canary ends, and nobody would need to let it go."""
    found = batches(chains(study(3, 1), one_group))
    assert [batch.canary for batch in found].count(True) == 1
    assert [batch.held_for for batch in found] == [None] * len(found)


def test_many_parents_that_are_under_way_do_not_make_a_call_each() -> None:
    items = [train(f"s{n}", f"parent{n}") for n in range(50)]
    found = batches(chains(items, one_group), canaries=Canaries({"gpu"}), under_way=lambda chain: [f"1_{chain.needs}"])
    assert len(found) == 1
    assert found[0].how == "afterany" and len(found[0].after) == 50


@st.composite
def forests(draw: st.DrawFn) -> list[Work]:
    items: list[Work] = []
    for number in range(draw(st.integers(1, 30))):
        parent = draw(st.sampled_from([None, *(item.state for item in items)]))
        items.append(train(f"s{number}", parent))
    return items + [evaluate(item.state) for item in items if draw(st.booleans())]


@settings(max_examples=300, deadline=None)
@given(forests(), st.integers(1, 7), st.integers(1, 3))
def test_every_item_is_in_one_task_after_all_that_it_needs(items: list[Work], most: int, groups: int) -> None:
    found = batches(chains(items, lambda item: int(item.state[1:]) % groups), Limits(most))
    done: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    for at, batch in enumerate(found):
        assert batch.tasks and all(0 <= index < most for index in batch.tasks)
        for index, chain in batch.tasks.items():
            inside: set[str] = set()
            for item in chain.items:
                counts[item.id] += 1
                if item.needs is not None and item.needs not in inside:
                    assert _waits_for(batch, index, *done[item.needs], found), f"{item.id} may start too early"
                if item.makes is not None:
                    inside.add(item.makes)
        for index, chain in batch.tasks.items():
            done |= {item.makes: (at, index) for item in chain.items if item.makes is not None}
    assert counts == Counter(item.id for item in items)


def _waits_for(batch: Batch, index: int, at: int, task: int, found: list[Batch]) -> bool:
    places = [after[1] for after in batch.after if not isinstance(after, str) and after[0] is found[at]]
    if batch.how == "aftercorr":
        return places == [None] and index == task
    return None in places or task in places


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 30))
def test_the_parts_of_a_parallel_cap_never_add_up_to_more(sizes: list[int], parallel: int) -> None:
    found = [Batch({n: Chain([train("s", None)], "g") for n in range(size)}, "g") for size in sizes]
    parts = shares(found, parallel)
    assert all(share.cap is not None and share.cap >= 1 for share in parts.values())
    for at, _ in enumerate(found):  # a batch runs beside those before it that it is not behind
        beside = [other for other in found[: at + 1] if not _is_behind(found[at], other, parts)]
        free = [one for one in beside if not any(_is_behind(other, one, parts) for other in beside if other is not one)]
        assert sum(parts[one].cap or 0 for one in free) <= parallel
    if len(found) <= parallel:
        assert sum(share.cap or 0 for share in parts.values()) == min(parallel, sum(sizes))


def _is_behind(batch: Batch, other: Batch, parts: dict[Batch, object]) -> bool:
    before = parts[batch].behind  # type: ignore[attr-defined]
    while before is not None:
        if before is other:
            return True
        before = parts[before].behind  # type: ignore[attr-defined]
    return False


def test_without_a_cap_there_are_no_parts() -> None:
    (share,) = shares([Batch({0: Chain([train("s", None)], "g")}, "g")], None).values()
    assert (share.cap, share.behind) == (None, None)
