"""`ablate bench plan`: the whole `ablate plan --json` command on a grid of 10,000 arms, from process start to exit."""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.launch import code

SIDE = 100  # arms: SIDE shares of one source x SIDE final rates
RUNS = 5

STUDY = """
schema: 1
study: grid
base:
  model: {{config: {{model_type: llama, hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16,
                   num_attention_heads: 32, num_key_value_heads: 8, vocab_size: 128256}}}}
  tokenizer: {{bpe: {{vocab: 1024, sources: [web]}}}}
sources: {{web: {{builtin: python_code}}, math: {{builtin: arithmetic}}, books: {{builtin: passages}}}}
train:
  batch_tokens: 2^20
  context: {{length: 4096}}
  optimizer: {{lr: 3.0e-4}}
  mixture: {{web: 0.9, math: 0.1}}
stages:
  stable: {{tokens: ~80B, lr: {{shape: constant, warmup: ~1B}}}}
  decay: {{tokens: ~15B, lr: {{shape: linear, to: 3.0e-5}}}}
  long: {{tokens: ~5B, context: {{length: 32Ki}}, mixture: {{web: 0.5, books: 0.5}}, lr: {{shape: linear, to: 0}}}}
ablate:
  - grid:
      - mixture: {{stage: decay, vary: math, values: [{shares}], absorb: web}}
      - stages.decay.lr.to: [{rates}]
seeds: {{data: [1, 2, 3]}}
eval: {{suites: [smoke@1], max_length: 4096}}
"""


def bench() -> dict[str, Any]:
    """Seconds of the whole command, and what it planned: 10,001 arms x 3 seeds over three stages."""
    shares = ", ".join(f"{i / 1000:.3f}" for i in range(SIDE))
    rates = ", ".join(f"{(j + 1) / 1e6:.6f}" for j in range(SIDE))
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        study = Path(scratch) / "grid.yaml"
        study.write_text(STUDY.format(shares=shares, rates=rates))
        command = code.command("harness.cli", "plan", str(study), "-o", str(Path(scratch) / "out"), "--json")
        seconds = []
        for _ in range(RUNS):
            began = time.perf_counter()
            printed = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=code.environment()
            ).stdout
            seconds.append(time.perf_counter() - began)
    totals = json.loads(printed)["totals"]
    return {
        "bench": "plan",
        "arms": totals["arms"],
        "runs": totals["runs"],
        "segments": totals["segments"],
        "json_bytes": len(printed),
        "seconds": {
            "min": round(min(seconds), 3),
            "median": round(statistics.median(seconds), 3),
            "max": round(max(seconds), 3),
        },
    }
