"""A study of two arms that is trained, evaluated and reported in a few seconds, for tests that run it many times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SMALL = """\
schema: 1
study: small
base:
  model:
    config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources:
  sums: {builtin: arithmetic, documents: 200}
  more: {builtin: arithmetic, documents: 200, seed: 1}
train:
  batch_tokens: 256
  context: {length: 64}
  optimizer: {lr: 3.0e-3}
  mixture: {sums: 1.0}
stages:
  stable: {tokens: STABLE, lr: {shape: constant, warmup: 2560}}
  decay: {tokens: 6400, mixture: {sums: 0.5, more: 0.5}, lr: {shape: linear, to: 0}}
ablate:
  - mixture: {stage: decay, vary: more, values: [0.3], absorb: sums}
seeds: {data: [1]}
compare: {allow: {default: [no-control]}, primary: [bpb.sums]}
eval: {at: [end], max_length: 64, held_out: {window: 64, documents: 4}}
launch: {jobs: 1, checkpoint_every: 2560}
"""


@dataclass(frozen=True)
class Finished:
    """`root` holds `small.yaml`, `out` and `cache` after a run; `written`: every path that the run wrote, in order."""

    root: Path
    written: list[Path]


EVALUATION = "eval: {at: [end], max_length: 64, held_out: {window: 64, documents: 4}}\n"


def write_small(folder: Path, stable: int = 7680, evaluated: bool = True) -> Path:
    """The study in a file; `stable`: tokens of its first stage."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    text = SMALL.replace("STABLE", str(stable))
    path.write_text(text if evaluated else text.replace(EVALUATION, "").replace(", primary: [bpb.sums]", ""))
    return path
