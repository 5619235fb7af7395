"""Held-out bits per byte against a plain per-token computation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.evals import held_out
from harness.evals.held_out import Document, DocumentLoss, bucket_edges, by_position, read_documents
from harness.study.errors import UserError
from tests.evals.conftest import NON_ASCII, Exported


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> Iterator[tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(exported.model, dtype=torch.float32).eval()
    yield model, AutoTokenizer.from_pretrained(exported.model)
    torch.set_num_threads(before)


@torch.inference_mode()
def one_token_at_a_time(model: Any, tokens: list[int], prefix: int, window: int) -> float:
    """Nats of a document: each token from the tokens before it in its window, one forward per token."""
    total = 0.0
    for place, token in enumerate(tokens):
        start = place - place % window
        left = [prefix if start == 0 else tokens[start - 1], *tokens[start:place]]
        logits = model(input_ids=torch.tensor([left])).logits[0, -1].double()
        total += float(torch.logsumexp(logits, 0) - logits[token])
    return total


def test_the_loss_of_a_document_is_that_of_its_tokens_one_by_one(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    texts = ["37 + 45 = 82.\n", NON_ASCII, "Note: hill level wharf rust path carpet burn sheep mild swan bread."]
    documents = [Document(i, "", len(text.encode()), text) for i, text in enumerate(texts)]
    tokens = held_out.encode(tokenizer, documents)
    assert max(map(len, tokens)) > 16 > min(map(len, tokens)), "some documents have several windows"
    nats = held_out.score(model, tokens, tokenizer.eos_token_id, 16, 4, torch.device("cpu"))
    expected = [one_token_at_a_time(model, row, tokenizer.eos_token_id, 16) for row in tokens]
    assert [row.sum() for row in nats] == pytest.approx(expected, rel=1e-5)
    losses = [DocumentLoss(*pair) for pair in zip(documents, nats, strict=True)]
    value = held_out.metrics(losses, 16, False)["bits_per_byte"].value
    assert value == pytest.approx(sum(expected) / (math.log(2) * sum(len(text.encode()) for text in texts)), rel=1e-5)


def test_bytes_are_utf_8_bytes_of_the_raw_text(tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    path.write_text(
        json.dumps({"text": NON_ASCII}) + "\n" + json.dumps({"text": "é\u2028é"}, ensure_ascii=False) + "\n"
    )
    sizes = [document.size for document in read_documents(path, 10)]
    assert sizes == [len(NON_ASCII.encode("utf-8")), 7]
    assert sizes[0] > len(NON_ASCII)


def test_padding_and_company_in_a_batch_change_no_loss(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    tokens = [[5, 9, 200, 31, 4], [7] * 40, [300, 12], [88] * 17]
    together = held_out.score(model, tokens, 0, 16, 4, torch.device("cpu"))
    for row, nats in zip(tokens, together, strict=True):
        (alone,) = held_out.score(model, [row], 0, 16, 1, torch.device("cpu"))
        np.testing.assert_allclose(nats, alone, rtol=1e-5)


def test_lm_eval_s_rolling_loss_agrees_where_a_document_fills_its_window(
    loaded: tuple[Any, Any], exported: Exported
) -> None:
    from lm_eval.api.instance import Instance

    from harness.evals.lm import load
    from harness.evals.settings import EvalSettings

    model, tokenizer = loaded
    texts = [NON_ASCII, "Adding 3 to 4 gives 7."]
    documents = [Document(i, "", len(text.encode()), text) for i, text in enumerate(texts)]
    lm = load(exported.model, EvalSettings(max_length=256, device="cpu"))
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    nats = held_out.score(model, held_out.encode(tokenizer, documents), lm.prefix_token_id, 256, 8, torch.device("cpu"))
    assert [-row.sum() for row in nats] == pytest.approx(lm.loglikelihood_rolling(requests), rel=1e-5)


def test_position_buckets_cover_the_window_and_add_up() -> None:
    assert bucket_edges(200) == [0, 32, 64, 128, 200]
    assert bucket_edges(16) == [0, 16]
    nats = np.arange(1.0, 301.0)
    sums, counts = by_position(nats, 200)
    assert sums.sum() == pytest.approx(nats.sum())
    assert counts.tolist() == [64, 64, 100, 72]
    assert sums[3] == pytest.approx(nats[128:200].sum())


def test_documents_are_chosen_by_content_and_kept_in_file_order(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(30)]
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chosen = [document.text for document in read_documents(path, 10)]
    assert chosen == [text for text in texts if text in chosen] and len(chosen) == 10
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed(texts)))
    assert {document.text for document in read_documents(path, 10)} == set(chosen)


def test_a_source_without_held_out_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text("")
    with pytest.raises(UserError, match="no held-out text"):
        read_documents(tmp_path / "held_out.jsonl", 10)
    with pytest.raises(UserError, match="cannot be read"):
        read_documents(tmp_path / "gone.jsonl", 10)
