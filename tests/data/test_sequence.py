"""The endless document sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sequence import DocumentSequence, permutation


def test_the_order_is_pinned_across_machines_and_versions() -> None:
    assert permutation("abc", 1, 0, 10).tolist() == PINNED
    assert permutation("abc", 1, 1, 10).tolist() != PINNED
    assert permutation("abc", 2, 0, 10).tolist() != PINNED
    assert permutation("abd", 1, 0, 10).tolist() != PINNED


PINNED = [1, 8, 7, 6, 3, 0, 4, 5, 9, 2]


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 60))
def test_any_stretch_is_the_same_read_at_once_or_document_by_document(documents: int, start: int, n: int) -> None:
    sequence = DocumentSequence("x", documents, [(0, 3), (17, 4)])
    at_once = sequence.served(start, start + n)
    one_by_one = [int(sequence.served(i, i + 1)[0]) for i in range(start, start + n)]
    assert at_once.tolist() == one_by_one


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(1, 100), st.integers(0, 9)), max_size=4))
def test_every_epoch_holds_every_document_once_however_often_it_is_reshuffled(
    documents: int, changes: list[tuple[int, int]]
) -> None:
    sequence = DocumentSequence("x", documents, [(0, 0)])
    for ordinal, seed in sorted(changes):
        before = sequence.served(0, ordinal)
        sequence = sequence.reshuffled(ordinal, seed)
        np.testing.assert_array_equal(sequence.served(0, ordinal), before)
    for epoch in range(120 // documents):
        one = sequence.served(epoch * documents, (epoch + 1) * documents)
        assert sorted(one.tolist()) == list(range(documents))


def test_epochs_after_a_reshuffle_are_those_of_the_new_seed() -> None:
    sequence = DocumentSequence("x", 10, [(0, 1)]).reshuffled(4, 2)
    np.testing.assert_array_equal(sequence.served(10, 30), DocumentSequence("x", 10, [(0, 2)]).served(10, 30))


def test_what_is_left_of_the_epoch_comes_in_the_order_of_the_new_seed() -> None:
    sequence = DocumentSequence("x", 10, [(0, 1)]).reshuffled(4, 2)
    served = set(sequence.served(0, 4).tolist())
    fresh = [document for document in permutation("x", 2, 0, 10).tolist() if document not in served]
    assert sequence.served(4, 10).tolist() == fresh


def test_reshuffles_that_do_not_ascend_from_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        DocumentSequence("x", 10, [(3, 1)])
    with pytest.raises(ValueError, match="ascend"):
        DocumentSequence("x", 10, [(0, 1), (5, 2), (5, 3)])
