"""The loader is a pure function of (pieces, sources, cursor)."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import Batch, Cursor, Loader, TokenSource, requested_by_piece, requested_tokens, served
from harness.data import loader as loader_module
from tests.data.toys import piece, plain_batches, toy_source

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)
sources = st.fixed_dictionaries({"a": lengths, "b": lengths, "c": lengths}).map(
    lambda found: {name: toy_source(name, each) for name, each in found.items()}
)


@st.composite
def paths(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to four pieces: mixtures, context lengths, masks and data seeds change; some go on in one stage."""
    pieces: list[dict[str, Any]] = []
    start, blend_from = 0, 0
    for number in range(draw(st.integers(1, 4))):
        batches = draw(st.integers(1, 12))
        names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
        weights = [draw(st.integers(1, 9)) for _ in names]
        mixture = {n: str(Fraction(w, sum(weights))) for n, w in zip(names, weights, strict=True)}
        goes_on = number > 0 and len(mixture) > 1 and draw(st.booleans())
        if goes_on and len(pieces[-1]["science"]["mixture"]) > 1:
            mixture = pieces[-1]["science"]["mixture"]
        else:
            blend_from = start
        pieces.append(
            piece(
                start,
                start + 16 * batches,
                mixture,
                stage=f"s{number}",
                seed=draw(st.integers(0, 2)),
                length=draw(st.sampled_from([1, 4, 8, 16])),
                documents=draw(st.sampled_from(["masked", "joined"])),
                blend_from=blend_from,
            )
        )
        start += 16 * batches
    return pieces


def batches_of(loader: Loader, count: int | None = None) -> list[Batch]:
    found = []
    while count is None or len(found) < count:
        try:
            found.append(loader.next())
        except StopIteration:
            break
    return found


def resumed(loader: Loader, pieces: list[dict[str, Any]], pool: dict[str, TokenSource]) -> Loader:
    """The same loader in another process: only JSON crosses."""
    text = json.dumps(loader.cursor().to_json())
    return Loader(pieces, pool, Cursor.from_json(json.loads(text)), loader.tokens)


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.start == b.start
        assert a.documents == b.documents
        for name in ("input_ids", "labels", "position_ids", "source"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def stream_of(batches: list[Batch], loader: Loader, name: str) -> np.ndarray:
    """The tokens that a source served, in order."""
    number = loader.source_names.index(name)
    parts = [batch.input_ids[batch.source == number].ravel() for batch in batches]
    return np.concatenate(parts)


@given(paths(), sources)
@settings(max_examples=80, deadline=None)
def test_batches_equal_those_of_a_token_by_token_loader(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource]
) -> None:
    loader = Loader(pieces, pool)
    found = batches_of(loader)
    expected = list(plain_batches(pieces, pool))
    assert len(found) == len(expected)
    for batch, plain in zip(found, expected, strict=True):
        for row, wanted in enumerate(plain.rows):
            assert loader.source_names[batch.source[row]] == wanted["source"]
            assert batch.input_ids[row].tolist() == wanted["ids"]
            assert batch.labels[row].tolist() == wanted["labels"]
            assert batch.position_ids[row].tolist() == wanted["positions"]
            assert [document for _, document in batch.documents[row]] == wanted["documents"]


@given(paths(), sources, st.data())
@settings(max_examples=80, deadline=None)
def test_cut_anywhere_twice_and_resumed_through_json_gives_the_same_batches_and_cursor(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource], data: st.DataObject
) -> None:
    whole = Loader(pieces, pool)
    expected = batches_of(whole)
    first = data.draw(st.integers(0, len(expected)))
    second = data.draw(st.integers(first, len(expected)))

    loader = Loader(pieces, pool)
    found = batches_of(loader, first)
    loader = resumed(loader, pieces, pool)
    found += batches_of(loader, second - first)
    loader = resumed(loader, pieces, pool)
    found += batches_of(loader)

    assert_same(found, expected)
    assert loader.cursor() == whole.cursor()


@given(paths(), sources, st.sampled_from([1, 16, 48]))
@settings(max_examples=40, deadline=None)
def test_how_far_the_loader_works_ahead_changes_nothing(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource], block: int
) -> None:
    far, near = Loader(pieces, pool), Loader(pieces, pool)
    for _ in range(pieces[-1]["end"] // 16):
        expected = far.next()
        with patch.object(loader_module, "_BLOCK", block):
            assert_same([near.next()], [expected])
        assert near.cursor() == far.cursor()


@given(paths(), sources)
@settings(max_examples=60, deadline=None)
def test_a_path_is_a_function_of_its_prefix(pieces: list[dict[str, Any]], pool: dict[str, TokenSource]) -> None:
    prefix = batches_of(Loader(pieces[:1], pool))
    together = batches_of(Loader(pieces, pool), len(prefix))
    for a, b in zip(together, prefix, strict=True):
        np.testing.assert_array_equal(a.input_ids, b.input_ids)
        np.testing.assert_array_equal(a.labels, b.labels)


@given(lengths, st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_nothing_repeats_before_the_pool_is_used_up_and_nothing_is_skipped(
    pool_lengths: list[int], seed: int, epochs: int
) -> None:
    source = toy_source("a", pool_lengths)
    tokens = -(-epochs * source.tokens_total // 16) * 16
    loader = Loader([piece(0, tokens, {"a": "1"}, seed=seed)], {"a": source})
    stream = stream_of(batches_of(loader), loader, "a")
    for epoch in range(epochs):
        one = stream[epoch * source.tokens_total : (epoch + 1) * source.tokens_total]
        assert sorted(one.tolist()) == sorted(source.ids.tolist())


@given(sources, st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8]))
@settings(max_examples=60, deadline=None)
def test_arms_that_drew_n_tokens_of_a_source_drew_the_same_ones_whatever_the_mixture(
    pool: dict[str, TokenSource], tenths: int, other: int, length: int
) -> None:
    rich = {"a": f"{tenths}/10", "b": f"{10 - tenths}/10"}
    poor = {"c": f"{other}/10", "a": f"{10 - other}/10"}
    one = Loader([piece(0, 640, rich, length=8)], pool)
    two = Loader([piece(0, 320, poor, length=length), piece(320, 640, {"a": "1"}, stage="s")], pool)
    left, right = stream_of(batches_of(one), one, "a"), stream_of(batches_of(two), two, "a")
    n = min(len(left), len(right))
    assert n > 0
    np.testing.assert_array_equal(left[:n], right[:n])


@given(sources, st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_reshuffle_keeps_what_was_served_finishes_what_was_begun_and_skips_nothing(
    pool: dict[str, TokenSource], trunk: int, rest: int
) -> None:
    source = pool["a"]
    before, end = 16 * trunk, 16 * trunk + 16 * rest
    kept = Loader([piece(0, end, {"a": "1"}, seed=0)], pool)
    changed = Loader([piece(0, before, {"a": "1"}, seed=0), piece(before, end, {"a": "1"}, seed=7)], pool)
    old, new = stream_of(batches_of(kept), kept, "a"), stream_of(batches_of(changed), changed, "a")
    np.testing.assert_array_equal(new[:before], old[:before])
    # Token = document x 1000 + place: a document that was begun goes on at the next place, to its end.
    document, place = divmod(int(old[before - 1]), 1000)
    left = min(source.length(document) - place - 1, end - before)
    np.testing.assert_array_equal(new[before : before + left], old[before - 1] + 1 + np.arange(left))
    for epoch in range(end // source.tokens_total):
        one = new[epoch * source.tokens_total : (epoch + 1) * source.tokens_total]
        assert len(set(one.tolist())) == source.tokens_total


def test_another_data_seed_orders_what_was_not_served_differently() -> None:
    pool = {"a": toy_source("a", [5] * 100)}
    trunk = piece(0, 160, {"a": "1"}, seed=0)
    streams = []
    for seed in (1, 2):
        loader = Loader([trunk, piece(160, 496, {"a": "1"}, seed=seed)], pool)
        streams.append(stream_of(batches_of(loader), loader, "a"))
    np.testing.assert_array_equal(streams[0][:160], streams[1][:160])
    assert not np.array_equal(streams[0][160:], streams[1][160:])


def test_sources_first_drawn_after_a_change_of_seed_have_the_order_of_the_new_seed_alone() -> None:
    pool = {"a": toy_source("a", [5] * 40), "b": toy_source("b", [7] * 40)}
    late = Loader([piece(0, 160, {"a": "1"}, seed=0), piece(160, 320, {"b": "1"}, seed=3)], pool)
    alone = Loader([piece(0, 160, {"b": "1"}, seed=3)], pool)
    np.testing.assert_array_equal(stream_of(batches_of(late), late, "b"), stream_of(batches_of(alone), alone, "b"))


@given(sources, st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_blend_is_less_than_one_row_off_at_every_prefix_of_a_stage(
    pool: dict[str, TokenSource], x: int, y: int, z: int
) -> None:
    shares = {name: Fraction(w, x + y + z) for name, w in zip("abc", (x, y, z), strict=True)}
    mixture = {name: str(share) for name, share in shares.items()}
    stages = [
        piece(0, 320, mixture, stage="one"),
        piece(320, 960, mixture, stage="two", length=4),  # counters start again at 320
    ]
    loader = Loader(stages, pool)
    for stage in stages:
        counts = dict.fromkeys("abc", 0)
        rows = 0
        for batch in batches_of(loader, (stage["end"] - stage["start"]) // 16):
            for source in batch.source:
                rows += 1
                counts[loader.source_names[source]] += 1
                assert all(abs(counts[name] - shares[name] * rows) < 1 for name in "abc")


def test_counters_restart_at_blend_from_and_pass_through_a_cut_inside_the_stage() -> None:
    pool = {"a": toy_source("a", [9] * 5), "b": toy_source("b", [9] * 5)}
    mixture = {"a": "1/5", "b": "4/5"}
    uncut = [piece(0, 160, mixture)]
    cut = [piece(0, 48, mixture), piece(48, 160, mixture, blend_from=0)]
    again = [piece(0, 48, mixture), piece(48, 160, mixture, blend_from=48)]
    order = [np.concatenate([b.source for b in batches_of(Loader(p, pool))]) for p in (uncut, cut, again)]
    np.testing.assert_array_equal(order[0], order[1])
    np.testing.assert_array_equal(order[2][6:], order[0][:14])
    assert not np.array_equal(order[0], order[2])


@given(sources, st.sampled_from([2, 8, 16]))
@settings(max_examples=40, deadline=None)
def test_rows_have_no_label_across_a_masked_boundary_and_joined_rows_have(
    pool: dict[str, TokenSource], length: int
) -> None:
    masked = batches_of(Loader([piece(0, 320, {"a": "1"}, length=length)], pool))
    joined = batches_of(Loader([piece(0, 320, {"a": "1"}, length=length, documents="joined")], pool))
    boundaries = 0
    for m, j in zip(masked, joined, strict=True):
        np.testing.assert_array_equal(m.input_ids, j.input_ids)
        first = j.labels % 1000 == 0  # place 0 in its document
        boundaries += int(first.sum())
        assert (m.labels[first] == -100).all()
        np.testing.assert_array_equal(m.labels[~first], j.labels[~first])
        assert (j.labels >= 0).all()
        np.testing.assert_array_equal(j.position_ids, np.broadcast_to(np.arange(length), j.labels.shape))
    assert boundaries > 0


def test_a_longer_context_goes_on_at_the_same_token() -> None:
    pool = {"a": toy_source("a", [13, 50, 7])}
    short = Loader([piece(0, 320, {"a": "1"}, length=4)], pool)
    longer = Loader([piece(0, 80, {"a": "1"}, length=4), piece(80, 320, {"a": "1"}, length=16)], pool)
    np.testing.assert_array_equal(stream_of(batches_of(short), short, "a"), stream_of(batches_of(longer), longer, "a"))


@given(paths(), sources)
@settings(max_examples=60, deadline=None)
def test_served_equals_requested_to_the_token_and_the_batches_that_were_given(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource]
) -> None:
    loader = Loader(pieces, pool)
    found = batches_of(loader)
    table = served(loader)
    assert {name: row.tokens for name, row in table.items()} == requested_tokens(pieces)
    for number, name in enumerate(loader.source_names):
        labels = sum(int((batch.labels[batch.source == number] != -100).sum()) for batch in found)
        assert table[name].labels == labels
        stream = stream_of(found, loader, name)
        begun = int((stream % 1000 == 0).sum())  # a document begins where its place 0 is served
        assert table[name].documents == begun
        assert table[name].epochs == begun / pool[name].documents
    assert sum(sum(tokens.values()) for tokens in requested_by_piece(pieces)) == pieces[-1]["end"]


def test_a_source_that_is_not_the_one_that_was_planned_is_refused() -> None:
    pool = {"a": toy_source("other", [5, 5])}
    with pytest.raises(ValueError, match="the path names identity of a"):
        Loader([piece(0, 16, {"a": "1"})], pool)


def test_a_path_is_entered_in_its_middle_only_with_a_cursor() -> None:
    with pytest.raises(ValueError, match="cursor"):
        Loader([piece(0, 32, {"a": "1"})], {"a": toy_source("a", [5])}, None, 16)


def test_a_cursor_of_another_blend_is_refused() -> None:
    pool = {"a": toy_source("a", [9] * 5), "b": toy_source("b", [9] * 5)}
    mixture = {"a": "1/5", "b": "4/5"}
    loader = Loader([piece(0, 160, mixture)], pool)
    batches_of(loader, 3)
    other = [piece(0, 16, mixture), piece(16, 160, mixture)]
    with pytest.raises(ValueError, match="counts from token 16"):
        Loader(other, pool, loader.cursor(), loader.tokens).next()
