"""The stub trainer can be imported here and by worker processes; token stores stay out of the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TINY = """\
schema: 1
study: tiny
base:
  model:
    config:
      {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
       num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources:
  sums: {builtin: arithmetic, documents: 400}
  more: {builtin: arithmetic, documents: 400, seed: 1}
train:
  batch_tokens: 256
  context: {length: 64}
  optimizer: {name: adamw, lr: 3.0e-3}
  mixture: {sums: 1.0}
stages:
  stable: {tokens: 12800, lr: {shape: constant, warmup: 2560}}
  decay: {tokens: 6400, mixture: {sums: 0.5, more: 0.5}, lr: {shape: linear, to: 0}}
ablate:
  - mixture: {stage: decay, vary: more, values: [0, 0.3], absorb: sums}
seeds: {data: [1, 2]}
"""
SCORED = """\
eval: {at: [stable, end], max_length: 64, held_out: {window: 64, documents: 4}}
compare: {control: more=0, primary: [bpb.sums]}
launch: {jobs: 2}
"""
UNSCORED = """\
compare: {control: more=0}
launch: {jobs: 2, checkpoint_every: 2560}
"""


@pytest.fixture(autouse=True)
def stub_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, str(Path(__file__).parents[2])]))


@pytest.fixture(scope="session")
def token_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("token-store")


@pytest.fixture(autouse=True)
def own_cache(token_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(token_store))


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A study of three arms and two seeds that is evaluated at two points."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + SCORED)
    return path


@pytest.fixture
def unscored(tmp_path: Path) -> Path:
    """The same study without evaluation, with checkpoints inside its segments."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + UNSCORED)
    return path
