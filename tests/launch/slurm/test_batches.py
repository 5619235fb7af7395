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


def merge(state: str, *needs: str) -> Work:
    return Work("merge", state, needs[0], 0, f"merge {state}", also=needs[1:])


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
    states = [item.state for item in items]
    evaluated = [evaluate(state) for state in states if draw(st.booleans())]
    for number in range(draw(st.integers(0, 5))):
        parts = draw(st.lists(st.sampled_from([*states, "there"]), min_size=1, max_size=6, unique=True))
        evaluated += [merge(f"m{100 + number}", *parts), evaluate(f"m{100 + number}")]
    return items + evaluated


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
                for state in item.awaits:
                    if state not in inside and state != "there":
                        assert _waits_for(batch, index, *done[state], found), f"{item.id} may start too early"
                if item.makes is not None:
                    inside.add(item.makes)
        for index, chain in batch.tasks.items():
            done |= {item.makes: (at, index) for item in chain.items if item.makes is not None}
    assert counts == Counter(item.id for item in items)


def _waits_for(batch: Batch, index: int, at: int, task: int, found: list[Batch]) -> bool:
    """Whether a task begins after another has ended: it waits for it, or for one that waits for it."""
    for after in batch.after:
        assert not isinstance(after, str)
        before, place = after
        indices = [index] if batch.how == "aftercorr" else list(before.tasks) if place is None else [place]
        if before is found[at] and task in indices:
            return True
        if any(_waits_for(before, one, at, task, found) for one in indices):
            return True
    return False


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


# Merges of several states


def test_a_merge_of_what_one_job_makes_comes_last_in_it() -> None:
    items = [
        train("a", None),
        train("b", "a"),
        train("c", "b"),
        merge("m", "a", "b", "c"),
        evaluate("m"),
        evaluate("c"),
    ]
    (chain,) = chains(items, one_group)
    assert [item.id for item in chain.items] == [
        *("train:a", "train:b", "train:c", "evaluate:c", "merge:m", "evaluate:m"),
    ]


def test_a_merge_of_what_several_jobs_make_waits_for_each_of_them() -> None:
    items = [train("s1", None), train("s2", None), train("s3", None), merge("m", "s1", "s2", "s3"), evaluate("m")]
    found = batches(chains(items, one_group), canaries=Canaries({"gpu"}))
    assert [len(batch.tasks) for batch in found] == [3, 1]
    last = found[1]
    assert last.how == "afterok" and [at for _, at in last.after] == [0, 1, 2]  # type: ignore[misc]
    assert [item.id for item in last.tasks[0].items] == ["merge:m", "evaluate:m"]


def test_a_merge_of_a_trunk_and_of_its_branches_waits_for_the_branches() -> None:
    """The trunk's job has ended before those of its branches begin."""
    items = [train("t", None), train("x", "t"), train("y", "t"), merge("m", "t", "x", "y")]
    found = chains(items, one_group)
    (merged,) = [chain for chain in found if chain.items[0].kind == "merge"]
    assert [parent.items[0].state for parent in merged.parents] == ["x", "y"]


def test_merges_of_the_same_jobs_are_one_job_and_merges_seed_by_seed_one_array() -> None:
    seeds = range(3)
    items = [train(f"{arm}{seed}", None) for seed in seeds for arm in "ab"]
    plain = len(batches(chains(items, one_group), canaries=Canaries({"gpu"})))
    soups = [merge(f"{name}{seed}", f"a{seed}", f"b{seed}") for seed in seeds for name in ("even", "odd")]
    found = batches(chains([*items, *soups], one_group), canaries=Canaries({"gpu"}))
    assert len(found) == plain + 1
    assert found[-1].how == "afterany" and len(found[-1].tasks) == 3 and len(found[-1].after) == 6
    assert {len(chain.items) for chain in found[-1].tasks.values()} == {2}


def test_merges_of_a_large_study_add_one_call_for_what_several_jobs_make() -> None:
    items = study(36, 3)
    plain = len(batches(chains(items, by_kind)))
    soups = [merge(f"soup{arm}", *(f"long{arm}.{seed}" for seed in range(3))) for arm in range(36)]
    soups += [evaluate(soup.state) for soup in soups]
    found = batches(chains([*items, *soups], lambda item: "gpu" if item.kind == "train" else "cpu"))
    assert len(found) <= plain + 1 and len(found) + 1 <= CALLS


def test_a_merge_waits_for_a_part_that_is_under_way_in_a_job_of_before() -> None:
    items = [train("a", None), merge("m", "a", "b"), evaluate("m")]
    made = chains(items, one_group, under_way={"b"})
    found = batches(made, canaries=Canaries({"gpu"}), under_way=lambda chain: ["7_1"] * ("b" in chain.awaits))
    assert [len(batch.tasks) for batch in found] == [1, 1] and found[1].how == "afterok"
    assert found[1].after == [(found[0], None), "7_1"]


def test_a_merge_of_two_parts_that_are_under_way_waits_for_both() -> None:
    words = {"a": "7_0", "b": "8"}
    made = chains([merge("m", "a", "b")], one_group, under_way=words)
    (batch,) = batches(made, canaries=Canaries({"gpu"}), under_way=lambda chain: [words[s] for s in chain.awaits])
    assert (batch.after, batch.how) == (["7_0", "8"], "afterok")
