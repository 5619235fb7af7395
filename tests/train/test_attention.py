"""Documents of long rows attend by themselves, without a mask of the row's square; batches are the loader's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.data.loader import Loader
from harness.study.errors import UserError
from harness.train import attention
from harness.train.attention import (
    Attention,
    block_mask,
    boundaries,
    by_document,
    causal,
    choose,
    document_of,
    restarts,
)
from harness.train.feed import Feed
from harness.train.packing import document_mask
from tests.train import build

LENGTHS = (5, 1, 7, 3)


def _rows() -> tuple[torch.Tensor, np.ndarray]:
    """Two rows: one of four documents, one of two."""
    ids = torch.from_numpy(np.random.default_rng(3).integers(1, build.VOCABULARY, size=(2, sum(LENGTHS))))
    first = np.concatenate([np.arange(n) for n in LENGTHS])
    second = np.concatenate([np.arange(9), np.arange(7)])
    return ids, np.stack([first, second])


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "smollm3", "gpt_neox", "gpt2"])
def test_by_document_attention_is_that_of_the_dense_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = _rows()

    def run(kind: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        monkeypatch.setattr(attention, "DENSE_LIMIT", 512 if kind == "dense" else 1)
        loop = build.loop([build.piece(0, build.BATCH)], trained=build.model(family))
        assert loop.forward.attention.kind == kind
        logits = loop.forward.logits(ids, positions)
        logits.square().mean().backward()
        return logits.detach(), build.gradients(loop.model)

    (dense, of_dense), (ours, of_ours) = run("dense"), run("by-document")
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)
    for name, gradient in of_dense.items():
        torch.testing.assert_close(of_ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_long_masked_rows_never_make_a_mask_of_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 positions on a CPU: the mask would have 25 million entries, and it is not built."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a dense mask was built")

    monkeypatch.setattr(attention, "document_mask", refuse)
    length = 5000
    model = build.model("llama", max_position_embeddings=length)
    context = {"length": length, "documents": "masked"}
    loop = build.loop([build.piece(0, length, batch_tokens=length, context=context)], trained=model)
    loop.update()
    (update,) = loop.look()
    assert loop.forward.attention.kind == "by-document" and update.finite
    assert loop.witness.record(loop.numerics.kernels, "by-document")["sdpa"] == ["flash_attention_for_cpu"]


@pytest.mark.parametrize(
    ("device", "length", "documents", "kind"),
    [
        ("cpu", 512, "masked", "dense"),
        ("cpu", 1024, "masked", "by-document"),
        ("cpu", 8192, "joined", "joined"),
        ("cuda", 2048, "masked", "flex"),
        ("cuda", 65536, "masked", "flex"),
        ("cuda", 65536, "joined", "joined"),
    ],
)
def test_the_kind_follows_from_device_and_context(device: str, length: int, documents: str, kind: str) -> None:
    assert choose(build.model(head_dim=16), {"length": length, "documents": documents}, device) == kind


def test_windows_in_long_masked_rows_on_a_cpu_are_refused() -> None:
    model = build.model("qwen2", hidden_size=32, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert choose(model, {"length": 4096, "documents": "masked"}, "cpu") == "library"
    for documents in ("masked", "joined"):
        with pytest.raises(UserError, match=r"8192.*different windows"):
            choose(model, {"length": 8192, "documents": documents}, "cpu")
    assert choose(model, {"length": 8192, "documents": "joined"}, "cuda") == "flex"


def test_a_model_that_flex_attention_does_not_serve_attends_by_document_on_a_gpu() -> None:
    """GPT-2 has no such attention in transformers, and FlexAttention no kernel for heads narrower than 16."""
    for model in (build.model("gpt2"), build.model("qwen3", head_dim=8)):
        assert choose(model, {"length": 1024, "documents": "masked"}, "cuda") == "by-document"


def test_documents_of_one_micro_batch_are_not_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one document each after rows of several: nothing of the earlier boundaries is left."""
    monkeypatch.setattr(attention, "DENSE_LIMIT", 1)
    ids, positions = _rows()
    one = np.arange(ids.shape[1])[None].repeat(2, axis=0)
    loop = build.loop([build.piece(0, build.BATCH)])
    fresh = loop.forward.logits(ids, one)
    several = loop.forward.logits(ids, positions)
    assert torch.equal(loop.forward.logits(ids, one), fresh) and not torch.equal(several, fresh)


def test_a_model_that_computes_attention_itself_is_refused_where_a_mask_is_not_given() -> None:
    model = build.model()
    monkey = type(model).set_attn_implementation
    try:
        type(model).set_attn_implementation = lambda self, name: None
        with pytest.raises(UserError, match="computes attention itself"):
            Attention(model, {"length": 1024, "documents": "masked"}, "cpu", torch.float32)
    finally:
        type(model).set_attn_implementation = monkey


def test_the_block_mask_says_what_the_dense_one_says() -> None:
    _, positions = _rows()
    dense = document_mask(torch.from_numpy(positions), "cpu", torch.float32)
    assert dense is not None
    blocks = block_mask(document_of(torch.from_numpy(positions)))
    length = positions.shape[1]
    index = torch.arange(length)
    for row in range(2):
        asked = blocks.mask_mod(torch.tensor(row), torch.tensor(0), index[:, None], index[None, :])
        assert asked.equal(dense[row, 0] == 0)


def test_boundaries_and_restarts_of_rows() -> None:
    _, positions = _rows()
    assert boundaries(positions)[0] == [(0, 5), (5, 6), (6, 13), (13, 16)]
    assert restarts(positions) and not restarts(np.arange(6)[None].repeat(2, axis=0))
    assert restarts(np.arange(4, 10)[None]), "positions of a document's middle are not the model's own"


@pytest.mark.parametrize("ahead", [False, True])
def test_the_feed_gives_the_loaders_batches_and_speaks_of_those_handed_out(ahead: bool) -> None:
    pieces = [build.piece(0, 4 * build.BATCH)]
    feed = Feed(Loader(pieces, build.token_sources()), torch.device("cpu"), ahead=ahead)
    loader = Loader(pieces, build.token_sources())
    for _ in range(4):
        assert (feed.tokens, feed.cursor()) == (loader.tokens, loader.cursor())
        fed, batch = feed.next(), loader.next()
        assert fed.rows.input_ids.numpy().tolist() == batch.input_ids.tolist()
        assert sum(fed.labels) == int((batch.labels != -100).sum())
        feed.prepare()
        assert (feed.tokens, feed.cursor()) == (loader.tokens, loader.cursor())
    with pytest.raises(StopIteration):
        feed.next()


def test_a_rank_is_fed_its_rows_and_the_labels_of_all() -> None:
    pieces = [build.piece(0, build.BATCH)]
    whole = Loader(pieces, build.token_sources()).next()
    feed = Feed(Loader(pieces, build.token_sources()), torch.device("cpu"), lambda rows: slice(rows // 2, rows))
    fed = feed.next()
    assert fed.rows.input_ids.tolist() == whole.input_ids[2:].tolist() and len(fed.micro_batches(1)) == 2
    assert sum(fed.labels) == int((whole.labels != -100).sum())


@pytest.mark.parametrize("function", [causal, by_document])
@pytest.mark.parametrize("name", ["position_bias", "s_aux", "softcap", "sliding_window"])
def test_what_a_family_adds_to_its_scores_is_never_left_out(function: Any, name: str) -> None:
    part = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UserError, match=f"wants attention with `{name}`"):
        function(torch.nn.Linear(1, 1), part, part, part, **{name: 1.0})
