"""A small study file, loaded as a user's would be."""

from __future__ import annotations

from pathlib import Path

from harness.plan.observed import TaskRef
from harness.plan.science import Identities
from harness.study import Study, load_study

TEXT = """
schema: 1
study: small
base:
  model: {config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
                   num_attention_heads: 2, vocab_size: 300}}
  tokenizer: {bpe: {vocab: 300, sources: [web]}}
sources:
  web: {builtin: python_docs}
  math: {builtin: arithmetic}
train:
  batch_tokens: 512
  context: {length: 128}
  mixture: {web: 0.9, math: 0.1}
  optimizer: {lr: 1.0e-3}
total: ~100k
stages:
  stable: {tokens: rest, lr: {shape: constant, warmup: ~5k}}
  decay: {tokens: ~10k, lr: {shape: linear, to: 0}}
ablate:
ITEMS
seeds: {data: [1, 2]}
eval: {suites: [smoke@1], at: [base, stable, end], max_length: 128, held_out: {window: 128}}
compare: {primary: [bpb.web], COMPARE}
"""

ITEMS = """
  - one_at_a_time:
      stages.decay.tokens: [~20k]
      stages.decay.lr.shape: [cosine]
"""

TASK = TaskRef("smoke@1", "smoke", "lm_eval", "k" * 64, "acc")


def write(folder: Path, items: str = ITEMS, compare: str = "allow: {default: [no-control]}") -> Path:
    path = folder / "small.yaml"
    path.write_text(TEXT.replace("ITEMS", items.strip("\n")).replace(", COMPARE", ", " + compare if compare else ""))
    return path


def study(
    folder: Path, items: str = ITEMS, compare: str = "allow: {default: [no-control]}", overrides: tuple[str, ...] = ()
) -> Study:
    return load_study(write(folder, items, compare), overrides)


def identities(weights: str = "w", tokenizer: str = "t", web: str = "1", math: str = "2") -> Identities:
    return Identities(weights * 64, tokenizer * 64, {"web": web * 64, "math": math * 64}, {})
