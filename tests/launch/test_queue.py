"""Which work is next, and what a failure takes with it."""

from __future__ import annotations

import pytest

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
