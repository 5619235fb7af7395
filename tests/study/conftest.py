from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.study import Study, load_study

BASE = """
schema: 1
study: small
base:
  model: {config: {model_type: llama, hidden_size: 64}}
  tokenizer: {bpe: {vocab: 1024, sources: [web]}}
sources:
  web: {builtin: python_docs}
  code: {builtin: python_code}
  math: {builtin: arithmetic}
train:
  batch_tokens: 512
  mixture: {web: 0.6, code: 0.1, math: 0.3}
  context: {length: 128}
  optimizer: {lr: 6e-3}
"""
STAGES = """
stages:
  stable: {tokens: 51200, lr: {shape: constant, warmup: 5120}}
  decay: {tokens: 10240, lr: {shape: linear, to: 0}}
"""

Load = Callable[..., Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a small study with more text, or other stages."""

    def read(more: str = "", *overrides: str, stages: str = STAGES) -> Study:
        path = tmp_path / "study.yaml"
        path.write_text(BASE + stages + more)
        return load_study(path, overrides)

    return read
