"""A whole study of cold stages, spikes and growing lengths: shared and unshared it ends in the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.store.layout import Folder
from harness.store.metrics import read_steps
from tests.proofs.ablate import ablate, disagreements, events, final_weights, plan_of

pytestmark = pytest.mark.slow

# `jump` is one update at a rate that spoils the weights: the next ones meet a loss that none before them had.
STUDY = """\
schema: 1
study: stages
base:
  model:
    config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources:
  sums: {builtin: arithmetic, documents: 200}
train:
  batch_tokens: 512
  context: {length: 64}
  optimizer: {lr: 3.0e-3, skip_spikes: {window: 16, sigma: 6}}
  mixture: {sums: 1.0}
stages:
  stable: {tokens: 20480, lr: {shape: constant, warmup: 2560}}
  jump: {tokens: 512, lr: {shape: constant, from: 1.0}}
  long: {tokens: 10240, lr: {shape: constant, from: 3.0e-3},
         context: {length: 128, rope: {type: dynamic, factor: 2}}}
  decay: {tokens: 10240, lr: {shape: linear, to: 0},
          context: {length: 256, rope: {type: ntk, factor: auto}}}
ablate:
  - one_at_a_time:
      stages.decay.optimizer.state: [cold]
      stages.long.optimizer.state: [cold]
  - cases:
      unguarded: {train.optimizer.skip_spikes: null}
seeds: {data: [1]}
compare: {allow: {default: [schedule-open, no-control]}}
launch: {jobs: 2, checkpoint_every: 2560}
"""


def skipped(folder: Path) -> dict[str, list[int]]:
    """The steps that each run left out."""
    found = {}
    for run in plan_of(folder)["runs"]:
        rows = [row for state in run["path"] for row in read_steps(Folder(folder).state(state)).rows]
        found[run["arm"]] = [row["step"] for row in rows if row.get("skipped")]
    return found


def test_cold_stages_spikes_and_ropes_end_in_the_same_bits_without_sharing(tmp_path: Path, cache: Path) -> None:
    study = tmp_path / "stages.yaml"
    study.write_text(STUDY)
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    ablate(cache, "run", study, "-o", shared, "--yes")
    ablate(cache, "run", study, "-o", alone, "--no-share", "--yes")
    assert final_weights(shared) == final_weights(alone)
    assert len(set(final_weights(shared).values())) == 4, "every arm is another one"
    assert skipped(shared) == skipped(alone)
    guarded = skipped(shared)["default"]
    assert 42 in guarded and 41 not in guarded and skipped(shared)["unguarded"] == []
    assert disagreements(shared) == [] and plan_of(shared)["totals"]["tokens"] < plan_of(alone)["totals"]["tokens"]

    switched = [event for found in events(shared).values() for event in found if event["kind"] == "stage_switched"]
    told = {(event["stage"], event["optimizer"]) for event in switched}
    assert told == {("jump", "carried"), ("long", "carried"), ("long", "cold"), ("decay", "carried"), ("decay", "cold")}
    report = (shared / "report" / "report.md").read_text("utf-8")
    assert f"left out {len(guarded)} update" in report
    for run in plan_of(shared)["runs"]:
        config = Folder(shared).state(run["path"][-1]).checkpoint(41472) / "model" / "config.json"
        rope = json.loads(config.read_text())
        assert rope["max_position_embeddings"] == 256
        assert rope["rope_parameters"]["rope_theta"] == pytest.approx(1e4 * 4 ** (8 / 6))
