"""The command as a user runs it, on a study small enough to be run many times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.store import attempts, states
from harness.store.layout import Folder
from harness.store.metrics import read_steps

STUDY = """
schema: 1
study: micro
question: Does it hold?
base:
  model:
    config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [math]}}
sources:
  web: {builtin: passages, documents: 120}
  math: {builtin: arithmetic, documents: 300}
train:
  batch_tokens: 512
  context: {length: 128}
  mixture: {web: 0.9, math: 0.1}
  optimizer: {lr: 2.0e-3}
total: ~60k
stages:
  stable: {tokens: rest, lr: {shape: constant, warmup: ~5k}}
  decay: {tokens: ~6k, lr: {shape: linear, to: 0}}
ablate:
  - one_at_a_time:
      stages.decay.tokens: [DECAYS]
  - cases:
      mix: {stages.decay.mixture: {web: 0.5, math: 0.5}}
      long: {stages.decay.context: {length: 256, rope: {type: default, theta: 4.0e+4}}}
seeds: {data: [1, 2]}
compare: {allow: {default: [no-control]}}
launch: {jobs: 2, checkpoint_every: 5120}
"""
DECAYS = "~10k, ~15k"


def write_study(folder: Path, text: str = STUDY, decays: str = DECAYS, name: str = "micro.yaml") -> Path:
    path = folder / name
    path.write_text(text.replace("DECAYS", decays))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "harness.cli", *map(str, arguments)]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "ABLATE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def ablate(cache: Path, *arguments: str | Path, code: int = 0) -> str:
    """Run a verb to its end; its whole output. Fails when it leaves with anything but `code`."""
    done = subprocess.run(
        command(*arguments),
        env=environment(cache),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def plan_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return value


def final_weights(folder: Path) -> dict[str, str]:
    """Weights hash at the end of every run."""
    result = {}
    for run in plan_of(folder)["runs"]:
        done = states.read_done(Folder(folder).state(run["path"][-1]))
        assert done is not None, run["name"]
        assert done.weights is not None, run["name"]
        result[run["name"]] = done.weights
    return result


def updates(folder: Path) -> dict[str, int]:
    """Updates that were computed for each state, every attempt counted."""
    return {state.id: _updates(state.root) for state in Folder(folder).all_states() if state.attempt_numbers()}


def _updates(state: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in state.glob("attempts/*/metrics.jsonl"))


def disagreements(folder: Path) -> list[int]:
    """Path tokens at which two attempts computed one update differently."""
    return [tokens for state in Folder(folder).all_states() for tokens in read_steps(state).disagreements]


def events(folder: Path) -> Mapping[str, list[dict[str, Any]]]:
    return {state.id: attempts.read_events(state) for state in Folder(folder).all_states()}
