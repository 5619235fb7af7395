"""Documents packed into one row do not know of each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.study.errors import UserError
from harness.train.loss import token_losses
from harness.train.model import build_model, config_from_fields
from harness.train.packing import check_causal, check_isolation, document_mask, single_mask_serves
from tests.train import build

FAMILIES = ["llama", "qwen2", "qwen3", "gpt_neox", "gpt2", "olmo2"]
LENGTHS = (5, 1, 7, 3)


def _packed() -> tuple[np.ndarray, np.ndarray]:
    """One row of four documents and its positions."""
    ids = np.random.default_rng(3).integers(1, build.VOCABULARY, size=(1, sum(LENGTHS)))
    positions = np.concatenate([np.arange(n) for n in LENGTHS])[None]
    return ids, positions


def _run(model_type: str, ids: np.ndarray, positions: np.ndarray, parts: list[slice]) -> tuple[torch.Tensor, dict]:
    """Logits of the first part and gradients of the mean of all parts' next-token losses, each part alone in a row."""
    loop = build.loop([build.piece(0, build.BATCH)], trained=build.model(model_type))
    logits = []
    for part in parts:
        out = loop.forward.logits(torch.from_numpy(ids[:, part]), positions[:, part])
        # The last token of a document has no label.
        labels = torch.from_numpy(ids[:, part]).roll(-1, dims=1)
        ends = np.append(positions[:, part][0, 1:] == 0, True)
        labels[0, torch.from_numpy(ends)] = -100
        (token_losses(out, labels).sum() / 12).backward()
        logits.append(out.detach())
    return torch.cat(logits, dim=1), build.gradients(loop.model)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_logits_and_gradients_of_the_documents_alone(family: str) -> None:
    ids, positions = _packed()
    ends = np.cumsum(LENGTHS)
    alone = [slice(int(end - n), int(end)) for end, n in zip(ends, LENGTHS, strict=True)]
    packed_logits, packed = _run(family, ids, positions, [slice(None)])
    logits, gradients = _run(family, ids, positions, alone)
    torch.testing.assert_close(packed_logits, logits, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_neighbour_changes_nothing(family: str) -> None:
    ids, positions = _packed()
    mutated = ids.copy()
    mutated[0, :6] = (mutated[0, :6] + 1) % build.VOCABULARY
    loop = build.loop([build.piece(0, build.BATCH)], trained=build.model(family))
    before, after = (loop.forward.logits(torch.from_numpy(rows), positions) for rows in (ids, mutated))
    assert torch.equal(before[0, 6:], after[0, 6:])
    assert not torch.equal(before[0, :6], after[0, :6])


def test_joined_rows_see_what_stands_before_them() -> None:
    ids, _ = _packed()
    positions = np.arange(ids.shape[1])[None]
    mutated = ids.copy()
    mutated[0, 0] = (mutated[0, 0] + 1) % build.VOCABULARY
    loop = build.loop([build.piece(0, build.BATCH)])
    before, after = (loop.forward.logits(torch.from_numpy(rows), positions) for rows in (ids, mutated))
    assert not torch.equal(before[0, -1], after[0, -1])


def test_the_mask_is_block_diagonal_and_causal() -> None:
    mask = document_mask(torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]), "cpu", torch.float32)
    assert mask is not None
    attends = (mask == 0).int()
    assert attends[0, 0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert attends[1, 0].equal(torch.ones(5, 5, dtype=torch.int).tril())


def test_rows_of_one_document_need_no_mask() -> None:
    assert document_mask(torch.arange(6).repeat(2, 1), "cpu", torch.float32) is None


def test_a_model_with_sliding_windows_keeps_its_windows_and_its_documents_apart() -> None:
    window = build.model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not single_mask_serves(window.config)
    check_isolation(window)
    ids = np.random.default_rng(0).integers(1, build.VOCABULARY, size=(1, 12))
    loop = build.loop([build.piece(0, build.BATCH)], trained=window)
    plain = window(input_ids=torch.from_numpy(ids)).logits
    torch.testing.assert_close(loop.forward.logits(torch.from_numpy(ids), np.arange(12)[None]), plain)


def test_an_architecture_that_mixes_documents_is_refused() -> None:
    class Leaky(torch.nn.Module):
        """Logits that depend on all earlier tokens, whatever mask is given."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build.model()
            self.config = self.inner.config

        def forward(self, **inputs: torch.Tensor) -> object:
            return self.inner(input_ids=inputs["input_ids"])

    with pytest.raises(UserError, match=r"masked.*cannot be kept by a llama model"):
        check_isolation(Leaky())


SMALL = {"vocab_size": build.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _of(model_type: str, **fields: object) -> torch.nn.Module:
    return build_model(config_from_fields({"model_type": model_type, **SMALL, **fields}), 1)


def test_a_model_that_sees_the_token_that_it_is_to_predict_is_refused() -> None:
    with pytest.raises(UserError, match="this bert model sees the tokens that it is to predict"):
        check_causal(_of("bert", intermediate_size=16))
    check_causal(_of("bert", intermediate_size=16, is_decoder=True))
    check_causal(build.model())


def test_a_model_that_counts_positions_from_the_start_of_its_row_is_refused() -> None:
    """Isolated, but not what the document would be alone: its learned positions go on from the document before it."""
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 16))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    counting = build_model(
        config_from_fields(
            {"model_type": "blenderbot-small", "vocab_size": build.VOCABULARY, "d_model": 16, **sizes, **heads}
        ),
        1,
    )
    check_causal(counting)
    with pytest.raises(UserError, match="a document's logits depend on where it stands in its row"):
        check_isolation(counting)


def test_a_model_that_takes_no_mask_of_documents_is_refused_in_a_paragraph() -> None:
    with pytest.raises(UserError, match=r"cannot be kept by a falcon model: it does not take a mask of documents"):
        check_isolation(_of("falcon", alibi=True))
