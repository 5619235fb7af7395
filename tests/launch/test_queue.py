"""Which work is next, and what a failure takes with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.launch.queue import Queue
from harness.launch.work import Failure, Result, Work


def train(state: str, needs: str | None, tokens: int) -> Work:
    return Work("train", state, needs, tokens, state)


def evaluate(state: str) -> Work:
    return Work("evaluate", state, state, 0, f"evaluate {state}")


def done(queue: Queue, item: Work | None) -> None:
    assert item is not None
    queue.settle(item, Result("evaluated" if item.kind == "evaluate" else "trained"))


def test_the_longest_remaining_path_comes_first() -> None:
    queue = Queue([train("short", None, 50), train("trunk", None, 10), train("leaf", "trunk", 100)])
    first, second = queue.take(), queue.take()
    assert first is not None and second is not None
    assert [first.state, second.state] == ["trunk", "short"]


def test_evaluation_waits_until_no_training_can_start() -> None:
    queue = Queue([evaluate("base"), train("a", "base", 1), train("b", "a", 1)], available={"base"})
    first, second = queue.take(), queue.take()
    assert first is not None and first.id == "train:a"
    assert second is not None and second.id == "evaluate:base"


def test_of_equal_children_a_worker_takes_its_own() -> None:
    queue = Queue([train("p", None, 5), train("q", None, 5), train("p1", "p", 7), train("q1", "q", 7)])
    p, q = queue.take(), queue.take()
    done(queue, p)
    done(queue, q)
    child = queue.take(after=q)
    assert child is not None and child.state == "q1"


def test_a_state_that_is_remade_is_not_taken_for_the_one_that_was_there() -> None:
    queue = Queue([train("leaf", "trunk", 1), train("trunk", None, 1)], available={"trunk"})
    first = queue.take()
    assert first is not None and first.state == "trunk"
    assert queue.take() is None


def test_an_item_whose_parent_nobody_makes_is_blocked_and_says_so() -> None:
    queue = Queue([train("leaf", "gone", 1), evaluate("leaf")])
    assert queue.finished
    result = queue.results["train:leaf"]
    assert result.outcome == "blocked" and result.failure is not None and "is not there" in result.failure.error
    assert queue.results["evaluate:leaf"].outcome == "blocked"


def test_below_a_state_that_diverged_earlier_all_is_unreachable() -> None:
    queue = Queue([train("leaf", "nan", 1), evaluate("leaf")], diverged={"nan"})
    assert {result.outcome for result in queue.results.values()} == {"unreachable"}


def test_a_failed_evaluation_takes_nothing_with_it() -> None:
    queue = Queue([evaluate("base"), train("a", "base", 1)], available={"base"})
    a, scored = queue.take(), queue.take()
    assert a is not None and scored is not None
    queue.settle(scored, Result("failed", Failure("error", "no")))
    done(queue, a)
    assert queue.finished and queue.results["train:a"].outcome == "trained"


def test_items_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        Queue([train("a", "b", 1), train("b", "a", 1)])


# Several parents


def merge(state: str, *needs: str) -> Work:
    return Work("merge", state, needs[0], 0, state, also=needs[1:])


def test_a_merge_starts_when_the_last_of_its_parts_is_there() -> None:
    queue = Queue([train("a", None, 3), train("b", None, 2), merge("m", "a", "b", "there"), evaluate("m")], {"there"})
    a, b = queue.take(), queue.take()
    assert queue.take() is None
    done(queue, b)
    assert queue.take() is None
    done(queue, a)
    merged = queue.take()
    assert merged is not None and merged.id == "merge:m" and queue.take() is None
    queue.settle(merged, Result("merged"))
    last = queue.take()
    assert last is not None and last.id == "evaluate:m"
    done(queue, last)
    assert queue.finished and queue.results.keys() == queue.items.keys()


def test_a_part_that_is_made_again_is_waited_for_although_it_was_there() -> None:
    queue = Queue([merge("m", "a", "b"), train("a", None, 1)], available={"a", "b"})
    first = queue.take()
    assert first is not None and first.state == "a" and queue.take() is None


@pytest.mark.parametrize(("outcome", "then"), [("failed", "blocked"), ("diverged", "unreachable")])
def test_one_part_that_will_never_be_there_is_enough(outcome: str, then: str) -> None:
    queue = Queue([train("a", None, 1), train("b", None, 1), merge("m", "a", "b"), evaluate("m"), evaluate("b")])
    a, b = queue.take(), queue.take()
    assert a is not None and b is not None
    queue.settle(a, Result(outcome, Failure("error", "no") if outcome == "failed" else None))  # type: ignore[arg-type]
    assert queue.results["merge:m"].outcome == queue.results["evaluate:m"].outcome == then
    done(queue, b)
    rest = queue.take()
    assert rest is not None and rest.id == "evaluate:b", "what the other part is needed for goes on"
    queue.settle(rest, Result("evaluated"))
    assert queue.finished and queue.take() is None and queue.results["merge:m"].outcome == then


def test_a_merge_of_a_part_that_nobody_makes_is_blocked_once_and_says_so() -> None:
    queue = Queue([train("a", None, 1), merge("m", "gone", "a", "too")])
    result = queue.results["merge:m"]
    assert result.outcome == "blocked" and result.failure is not None and "is not there" in result.failure.error
    done(queue, queue.take())
    assert queue.finished


def test_a_full_disk_does_not_rewrite_what_was_unreachable() -> None:
    queue = Queue([train("a", None, 9), train("b", None, 5), train("c", None, 1), merge("m", "a", "c")])
    a, b = queue.take(), queue.take()
    assert a is not None and b is not None
    queue.settle(a, Result("diverged"))
    queue.settle(b, Result("failed", Failure("disk", "full")))
    assert queue.results["merge:m"].outcome == "unreachable"
    assert queue.results["train:c"].outcome == "blocked"


def test_parts_of_merges_come_before_them_and_circles_are_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        Queue([merge("m", "a", "n"), merge("n", "m"), train("a", None, 1)])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_ever_starts_before_all_that_it_awaits_and_everything_is_settled_once(data: st.DataObject) -> None:
    items = _forest(data)
    data.draw(st.randoms()).shuffle(items)
    queue, made, ended = Queue(items), set[str](), list[str]()
    while not queue.finished:
        running = list(queue.running.values())
        item = queue.take() if not running or data.draw(st.booleans()) else None
        if item is not None:
            assert set(item.awaits) <= made
            continue
        if not running:
            break
        item = data.draw(st.sampled_from(running))
        fine = data.draw(st.integers(0, 5)) > 0
        ended.append(item.id)
        if fine and item.makes is not None:
            made.add(item.makes)
        queue.settle(item, Result("trained" if fine else "failed", None if fine else Failure("error", "no")))
    assert set(queue.results) == {item.id for item in items} and len(ended) == len(set(ended))
    for item in items:
        assert (queue.results[item.id].outcome == "blocked") == (not set(item.awaits) <= made)


def _forest(data: st.DataObject) -> list[Work]:
    items: list[Work] = []
    for number in range(data.draw(st.integers(1, 10))):
        parent = data.draw(st.sampled_from([None, *(item.state for item in items)]))
        items.append(train(f"s{number}", parent, number))
    states = [item.state for item in items]
    for number in range(data.draw(st.integers(0, 4))):
        parts = data.draw(st.lists(st.sampled_from(states), min_size=1, unique=True))
        items += [merge(f"m{number}", *parts), evaluate(f"m{number}")]
    return items
