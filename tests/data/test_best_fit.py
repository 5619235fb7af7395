"""Best-fit packing: whole documents in rows, the same rows however a path is cut, nothing twice, nothing left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data import Batch, Cursor, Loader, TokenSource, best_fit, served
from harness.data import loader as loader_module
from harness.data.packing import NO_LABEL
from harness.train.packing import document_mask
from tests.data.test_data_loader import assert_same, batches_of, resumed
from tests.data.toys import piece
from tests.data.toys import toy_source as toy


def toy_source(name: str, sizes: Sequence[int]) -> TokenSource:
    """Token (document + 1) x 1000 + place, so that padding is none of them."""
    source = toy(name, sizes)
    return TokenSource(source.identity, source.ids + np.uint32(1000), source.offsets)


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)
pools = st.fixed_dictionaries({"a": lengths, "b": lengths}).map(
    lambda found: {name: toy_source(name, each) for name, each in found.items()}
)


@pytest.fixture(autouse=True, scope="module")
def short_windows() -> Iterator[None]:
    """Windows of three rows, so that a short path crosses many of them."""
    with patch.object(best_fit, "WINDOW_ROWS", 3):
        yield


@st.composite
def paths(draw: st.DrawFn) -> list[dict[str, Any]]:
    """One to four pieces: row length, masks, data seed and mixture change; concatenation may come first."""
    pieces: list[dict[str, Any]] = []
    start, concat = 0, draw(st.integers(0, 1))
    for number in range(draw(st.integers(1, 4))):
        batches = draw(st.integers(1, 9))
        mixture = draw(st.sampled_from([{"a": "1"}, {"b": "1"}, {"a": "1/3", "b": "2/3"}]))
        length, documents = draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from(["masked", "joined"]))
        packing = "concat" if number < concat else "best-fit"
        kinds = {"seed": draw(st.integers(0, 2)), "length": length, "documents": documents, "packing": packing}
        pieces.append(piece(start, start + 16 * batches, mixture, stage=f"s{number}", **kinds))
        start += 16 * batches
    return pieces


def test_the_example_of_the_paper() -> None:
    """Figure 2 of 2404.10830 in lengths: only the document of 14 is cut, and four rows of 8 hold all 31 tokens."""
    source = toy_source("a", [14, 7, 5, 2, 3])
    sequence = _InOrder(5)
    with patch.object(best_fit, "WINDOW_ROWS", 100):
        found = best_fit.window(source, sequence, best_fit.SourceCursor(0, 0, ((0, 0),), 0, 0), 8)  # type: ignore[arg-type]
    rows = [[found.parts[index] for index in row] for row in found.rows]
    assert sorted(sum(stop - start for _, start, stop in row) for row in rows) == [7, 8, 8, 8]
    assert [part for row in rows for part in row if part[0] == 0] == [(0, 0, 8), (0, 8, 14)]
    assert sorted(part for row in rows for part in row if part[0] > 0) == [(1, 0, 7), (2, 0, 5), (3, 0, 2), (4, 0, 3)]


class _InOrder:
    """A sequence that serves documents as they stand."""

    def __init__(self, documents: int) -> None:
        self.documents = documents

    def served(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop) % self.documents


@given(st.lists(st.integers(1, 20), max_size=60))
def test_each_piece_is_in_the_row_with_the_least_room_that_held_it(sizes: list[int]) -> None:
    rooms: list[int] = []
    expected: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fitting = [room for room in rooms if room >= sizes[index]]
        row = rooms.index(min(fitting)) if fitting else len(rooms)
        if row == len(rooms):
            rooms.append(20)
            expected.append([])
        rooms[row] -= sizes[index]
        expected[row].append(index)
    assert best_fit.best_fit(sizes, 20) == expected


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a piece of 9 tokens is longer than a row of 8"):
        best_fit.best_fit([3, 9], 8)


@given(paths(), pools, st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_cut_anywhere_twice_and_resumed_through_json_gives_the_same_batches_and_cursor(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource], first: int, second: int
) -> None:
    whole = Loader(pieces, pool)
    expected = batches_of(whole)
    loader = Loader(pieces, pool)
    found = batches_of(loader, first)
    loader = resumed(loader, pieces, pool)
    found += batches_of(loader, second)
    loader = resumed(loader, pieces, pool)
    found += batches_of(loader)
    assert_same(found, expected)
    assert loader.cursor() == whole.cursor()
    assert served(loader) == served(whole)


@given(paths(), pools, st.sampled_from([16, 48, 4096]))
@settings(max_examples=80, deadline=None)
def test_how_far_the_loader_works_ahead_changes_nothing(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource], block: int
) -> None:
    expected = batches_of(Loader(pieces, pool))
    with patch.object(loader_module, "_BLOCK", block):
        assert_same(batches_of(Loader(pieces, pool)), expected)


def tokens_of(row: np.ndarray) -> list[int]:
    """The tokens of a row without its padding."""
    assert (np.diff(np.flatnonzero(row != best_fit.PAD)) == 1).all(), "padding comes last"
    return [token for token in row.tolist() if token != best_fit.PAD]


def context_at(pieces: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in pieces if p["start"] <= tokens < p["end"])["science"]["context"]
    return found


@given(paths(), pools)
@settings(max_examples=150, deadline=None)
def test_no_token_is_served_again_before_all_were_and_epochs_count_documents(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource]
) -> None:
    loader = Loader(pieces, pool)
    counts = {name: Counter({int(token): 0 for token in source.ids}) for name, source in pool.items()}
    begun = {name: Counter[int]() for name in pool}
    while True:
        try:
            batch = loader.next()
        except StopIteration:
            break
        packed = context_at(pieces, batch.start)["packing"] == "best-fit"
        for row, number in zip(batch.input_ids, batch.source, strict=True):
            name = loader.source_names[number]
            for token in tokens_of(row) if packed else row.tolist():  # nothing else looks like padding
                assert counts[name][token] == min(counts[name].values())
                counts[name][token] += 1
                begun[name][token // 1000] = max(begun[name][token // 1000], counts[name][token])
    for name, drawn in served(loader).items():
        assert drawn.documents == sum(begun[name].values())
        assert drawn.epochs == drawn.documents / pool[name].documents


@given(paths(), pools)
@settings(max_examples=80, deadline=None)
def test_rows_of_best_fit_cut_only_documents_that_are_longer(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource]
) -> None:
    fresh = [each for each in pieces if each["science"]["context"]["packing"] == "best-fit"][:1]
    moved = {**fresh[0], "start": 0, "end": fresh[0]["end"] - fresh[0]["start"]} if fresh else None
    if moved is None:
        return
    moved["science"] = {**moved["science"], **({"blend_from": 0} if "blend_from" in moved["science"] else {})}
    length = moved["science"]["context"]["length"]
    loader = Loader([moved], pool)
    for batch in batches_of(loader):
        for row, number in zip(batch.input_ids, batch.source, strict=True):
            held = Counter(token // 1000 - 1 for token in tokens_of(row))
            for document, count in held.items():
                size = pool[loader.source_names[number]].length(document)
                assert count == size if size <= length else count in (length, size % length)


@given(paths(), pools)
@settings(max_examples=80, deadline=None)
def test_labels_are_the_next_token_of_the_text_and_padding_has_none(
    pieces: list[dict[str, Any]], pool: dict[str, TokenSource]
) -> None:
    loader = Loader(pieces, pool)
    for batch in batches_of(loader):
        context = context_at(pieces, batch.start)
        if context["packing"] != "best-fit":
            continue
        for row, (ids, labels) in enumerate(zip(batch.input_ids, batch.labels, strict=True)):
            real = tokens_of(ids)
            source = pool[loader.source_names[batch.source[row]]]
            for at, token in enumerate(real):
                document, place = divmod(token, 1000)
                inside = token + 1 if place + 1 < source.length(document - 1) else NO_LABEL
                joined = real[at + 1] if context["documents"] == "joined" and at + 1 < len(real) else inside
                assert labels[at] == (inside if context["documents"] == "masked" else joined)
            assert (labels[len(real) :] == NO_LABEL).all()


def test_a_new_data_seed_orders_what_nothing_was_served_of() -> None:
    """Two runs that part inside a window: what was begun is finished, the rest of the epoch comes in another order."""
    pool = {"a": toy_source("a", [3] * 40)}
    runs = []
    for seed in (5, 6):
        pieces = [
            piece(0, 16, {"a": "1"}, packing="best-fit", seed=1),
            piece(16, 64, {"a": "1"}, packing="best-fit", seed=seed),
        ]
        runs.append([tokens_of(row) for batch in batches_of(Loader(pieces, pool)) for row in batch.input_ids])
    assert runs[0][:2] == runs[1][:2]
    assert runs[0][2:] != runs[1][2:]


def test_a_window_of_another_length_goes_on_with_what_was_not_served() -> None:
    pool = {"a": toy_source("a", [20, 3, 3, 5, 4, 9])}
    pieces = [
        piece(0, 16, {"a": "1"}, packing="best-fit", length=8),
        piece(16, 64, {"a": "1"}, packing="best-fit", length=16),
    ]
    seen = Counter(t for batch in batches_of(Loader(pieces, pool)) for row in batch.input_ids for t in tokens_of(row))
    assert set(seen) == {int(token) for token in pool["a"].ids}


def test_concatenation_does_not_go_on_inside_a_window() -> None:
    pool = {"a": toy_source("a", [3] * 40)}
    pieces = [piece(0, 16, {"a": "1"}, packing="best-fit"), piece(16, 32, {"a": "1"})]
    loader = Loader(pieces, pool)
    loader.next()
    with pytest.raises(ValueError, match="cannot go on concatenated"):
        loader.next()


def test_a_cursor_of_concatenation_has_the_keys_that_it_always_had() -> None:
    pool = {"a": toy_source("a", [3] * 40)}
    loader = Loader([piece(0, 32, {"a": "1"})], pool)
    loader.next()
    assert loader.cursor().to_json()["sources"]["a"].keys() == {"document", "token", "reshuffles", "tokens", "labels"}
    assert Cursor.from_json(loader.cursor().to_json()) == loader.cursor()


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gradients(batch: Batch, change: int | None = None) -> tuple[float, list[torch.Tensor]]:
    """Summed loss and gradients of a batch; change: what stands where padding is."""
    network = model()
    ids = torch.from_numpy(batch.input_ids % 200).clone()
    if change is not None:
        for row, each in enumerate(batch.input_ids):
            ids[row, len(tokens_of(each)) :] = change
    mask = document_mask(torch.from_numpy(batch.position_ids), "cpu", torch.float32)
    logits = network(
        input_ids=ids, position_ids=torch.from_numpy(batch.position_ids), attention_mask=mask, use_cache=False
    ).logits
    labels = torch.from_numpy(np.where(batch.labels == NO_LABEL, NO_LABEL, batch.labels % 200))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    return float(loss.detach()), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_packed_rows_train_as_each_document_by_itself_and_whatever_pads() -> None:
    documents = [13, 9, 7, 5, 4, 4, 3, 2]
    pool = {"a": toy_source("a", documents)}
    (packed,) = batches_of(Loader([piece(0, 48, {"a": "1"}, batch=48, length=16, packing="best-fit")], pool))
    assert (packed.labels == NO_LABEL).sum() > len(documents) - 1, "the batch has padding"
    loss, found = gradients(packed)
    alone = 0.0
    sums = [torch.zeros_like(gradient) for gradient in found]
    for row in packed.input_ids:
        for document in dict.fromkeys(token // 1000 - 1 for token in tokens_of(row)):
            tokens = pool["a"].tokens(document).astype(np.int64)[None]
            labels = np.concatenate([tokens[:, 1:], [[NO_LABEL]]], axis=1)
            single = Batch(0, tokens, labels, np.arange(tokens.shape[1])[None], np.zeros(1), [])
            one, each = gradients(single)
            alone += one
            for total, gradient in zip(sums, each, strict=True):
                total += gradient
    assert loss == pytest.approx(alone, rel=1e-5)
    for gradient, total in zip(found, sums, strict=True):
        torch.testing.assert_close(gradient, total, rtol=1e-4, atol=1e-5)
    other, changed = gradients(packed, change=17)
    assert other == loss
    for gradient, total in zip(found, changed, strict=True):
        torch.testing.assert_close(gradient, total, rtol=0, atol=0)


def test_rows_of_short_documents_do_not_come_first() -> None:
    """Documents a row, by quarter of a window, are about the same: no curriculum of lengths in every window."""
    generator = np.random.default_rng(1)
    sizes = np.clip(generator.lognormal(6.0, 1.0, 4000), 8, 20_000).astype(int)
    source = TokenSource("web", np.zeros(sizes.sum(), dtype="<u2"), np.concatenate([[0], np.cumsum(sizes)]))
    with patch.object(best_fit, "WINDOW_ROWS", 256):
        found = best_fit.window(source, _InOrder(4000), best_fit.SourceCursor(0, 0, ((0, 0),), 0, 0), 4096)  # type: ignore[arg-type]
    held = np.array([len(row) for row in found.rows])
    quarters = [quarter.mean() for quarter in np.array_split(held, 4)]
    assert max(quarters) < 1.5 * min(quarters)


def test_little_of_a_row_is_padding() -> None:
    """Documents as they are on the web, log-normal around 600 tokens, in rows of 4,096."""
    generator = np.random.default_rng(0)
    sizes = np.clip(generator.lognormal(6.0, 1.0, 4000), 8, 20_000).astype(int)
    with patch.object(best_fit, "WINDOW_ROWS", 256):
        source = TokenSource("web", np.zeros(sizes.sum(), dtype="<u2"), np.concatenate([[0], np.cumsum(sizes)]))
        found = best_fit.window(source, _InOrder(4000), best_fit.SourceCursor(0, 0, ((0, 0),), 0, 0), 4096)  # type: ignore[arg-type]
    tokens = sum(stop - start for _, start, stop in found.parts)
    assert tokens / (len(found.rows) * 4096) > Fraction(98, 100)
