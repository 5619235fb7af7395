"""What training comes to is what a plain loop comes to: transformers' eager attention on one document at a time,
torch's AdamW and clipping, rates from the formulas. Nothing of the reference is ours but the rows that it is given."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.data.loader import Batch, Loader
from harness.train.model import build_model, config_from_fields
from harness.train.numerics import Numerics
from tests.train import build

LENGTHS = (5, 1, 7, 3)
ROW = sum(LENGTHS)
BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0

# Tiny models of dense families that differ in what surrounds attention, and fields beyond the common ones.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {"num_key_value_heads": None},
    "olmo2": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}
MORE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None},
    "opt": {"num_key_value_heads": None, "intermediate_size": None, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "gemma": {"head_dim": 8},
    "olmo3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {"sliding_window": 4},
    "stablelm": {},
    "starcoder2": {"sliding_window": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "smollm3": {},
    "glm4": {"head_dim": 8},
    "nemotron": {},
    "helium": {"head_dim": 8},
    "apertus": {},
}


def _model(family: str, fields: dict[str, Any], seed: int = 1) -> Any:
    """Weights large enough that what is left out of a layer shows."""
    common = {name: value for name, value in build.config_fields().items() if name != "attention_dropout"}
    given = {name: value for name, value in {**common, "model_type": family, **fields}.items() if value is not None}
    given["pad_token_id"] = None
    model = build_model(config_from_fields(given), seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model


def _plain(model: Any) -> Any:
    """The same weights in plain transformers."""
    config = copy.deepcopy(model.config)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    plain.load_state_dict(model.state_dict())
    return plain.train()


def _documents(positions: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(row, its positions) of each document."""
    for row, of_row in enumerate(positions):
        starts = [0, *(np.flatnonzero(of_row[1:] == 0) + 1).tolist(), len(of_row)]
        yield from ((row, slice(a, b)) for a, b in itertools.pairwise(starts))


def _gradients(plain: Any, batch: Batch) -> float:
    """Backward of the mean loss over the batch's labels, one document at a time; the loss."""
    count, total = int((batch.labels != -100).sum()), 0.0
    for row, part in _documents(batch.position_ids):
        labels = torch.from_numpy(batch.labels[row, part])
        if (labels != -100).any():
            logits = plain(input_ids=torch.from_numpy(batch.input_ids[row : row + 1, part]), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0], labels, reduction="sum") / count
            loss.backward()
            total += loss.item()
    return total


def _adamw(plain: Any) -> torch.optim.AdamW:
    matrices, others = ([p for p in plain.parameters() if (p.ndim >= 2) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, foreach=False)


class _OneBatch:
    """A loader of one batch."""

    tokens, source_names, sources = 0, ("sums", "words"), {}

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def next(self) -> Batch:
        self.tokens = self._batch.input_ids.size
        return self._batch


def _one_batch(documents: str) -> Batch:
    """Two rows of four documents."""
    ids = np.random.default_rng(3).integers(1, build.VOCABULARY, size=(2, ROW))
    positions = np.concatenate([np.arange(n) for n in LENGTHS]) if documents == "masked" else np.arange(ROW)
    labels = np.roll(ids, -1, axis=1)
    labels[:, [-1, *(np.cumsum(LENGTHS) - 1 if documents == "masked" else [])]] = -100
    return Batch(0, ids, labels, np.stack([positions] * 2), np.array([0, 1]), [np.zeros(1)] * 2)


def _check_first_update(family: str, fields: dict[str, Any], documents: str, limit: int) -> None:
    context = {"length": ROW, "documents": documents}
    pieces = [build.piece(0, 2 * ROW, batch_tokens=2 * ROW, context=context)]
    trained, batch = _model(family, fields), _one_batch(documents)
    plain = _plain(trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.train.attention.DENSE_LIMIT", limit)
        loop = build.loop(pieces, trained=trained)
    loop.feed._loader = _OneBatch(batch)  # type: ignore[assignment]
    gradients: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.train.loop.update", lambda *_: gradients.update(build.gradients(trained)))
        loop.update()
    (update,) = loop.look()
    assert update.loss == pytest.approx(_gradients(plain, batch), abs=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("documents", "limit"), [("joined", 512), ("masked", 512), ("masked", 8)])
def test_loss_and_gradients_of_a_family_are_those_of_plain_transformers(
    family: str, documents: str, limit: int
) -> None:
    _check_first_update(family, FAMILIES[family], documents, limit)


@pytest.mark.slow
@pytest.mark.parametrize("family", MORE)
@pytest.mark.parametrize(("documents", "limit"), [("joined", 512), ("masked", 512), ("masked", 8)])
def test_loss_and_gradients_of_more_families_are_those_of_plain_transformers(
    family: str, documents: str, limit: int
) -> None:
    _check_first_update(family, MORE[family], documents, limit)


PEAK, BATCH = 1e-2, build.BATCH
LONG = {"length": 32, "packing": "best-fit", "rope": {"type": "default", "theta": 5e4}}


def _path() -> list[dict[str, Any]]:
    """A warm-up, a constant trunk, then longer rows, another theta and twice the batch under a decay."""
    warmup = {"shape": "linear", "from": 0.0, "to": PEAK, "start": 0, "end": 4 * BATCH, "at": "end"}
    decay = {"shape": "1-sqrt", "from": PEAK, "to": 0.1 * PEAK, "start": 8 * BATCH, "end": 16 * BATCH}
    return [
        build.piece(0, 4 * BATCH, lr=warmup),
        build.piece(4 * BATCH, 8 * BATCH, lr=PEAK),
        build.piece(
            8 * BATCH, 16 * BATCH, "long", lr=decay, context=LONG, batch_tokens=2 * BATCH, blend_from=8 * BATCH
        ),
    ]


def _rates() -> list[float]:
    return [
        *(PEAK * min(1.0, (update + 1) / 4) for update in range(8)),
        *(PEAK * (0.1 + 0.9 * (1 - math.sqrt(update / 4))) for update in range(4)),
    ]


def test_a_whole_path_comes_to_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    """Rates, carried optimizer, micro-batches of unequal label counts, packing, the switch of context and of theta."""
    study, path = build.StudyFolder(tmp_path), _path()
    segments = study.declare(path, [6 * BATCH, 8 * BATCH, 16 * BATCH])
    for segment in segments:
        assert study.train(segment, Numerics.resolve("cpu", 1, micro_batch=32)).kind == "trained"
    (base,) = study.state(study.base).checkpoints.glob("*/model")
    (end,) = study.state(segments[-1]).checkpoints.glob("*/model")
    expected = _trained_plainly(base, path, _rates())
    found = AutoModelForCausalLM.from_pretrained(end, dtype=torch.float32)
    assert found.config.rope_parameters["rope_theta"] == 5e4
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=2e-5, msg=name)


def _trained_plainly(base: Path, path: Sequence[dict[str, Any]], rates: Sequence[float]) -> dict[str, torch.Tensor]:
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").train()
    optimizer = _adamw(plain)
    loader = Loader(path, build.token_sources())
    for rate in rates:
        batch = loader.next()
        if batch.start == path[-1]["start"]:
            dims = torch.arange(0, 8, 2).float()
            plain.model.rotary_emb.inv_freq = 5e4 ** (-dims / 8)
        _gradients(plain, batch)
        torch.nn.utils.clip_grad_norm_(list(plain.parameters()), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(StopIteration):
        loader.next()
    return {name: parameter.detach() for name, parameter in plain.named_parameters()}
