"""A winner is promoted: a run of one study is where another begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.store import manifests
from harness.store.atomic import read_json, sha256_file
from harness.store.layout import Folder
from tests.proofs.ablate import ablate, final_weights, plan_of
from tests.proofs.small import write_small

NEXT = """\
schema: 1
study: next
base: {run: small/more=0.3/d1, optimizer: carried, lr: 0}
sources:
  sums: {builtin: arithmetic, documents: 200}
train: {batch_tokens: 256, mixture: {sums: 1.0}, context: {length: 64}, optimizer: {lr: 1.0e-3}}
stages:
  more: {tokens: 2560, lr: {shape: linear, to: 0}}
eval: {at: [base, end], max_length: 64, held_out: {window: 64, documents: 4}}
"""


def refused(cache: Path, study: Path, out: Path, *changes: str) -> str:
    sets = [part for change in changes for part in ("--set", change)]
    return ablate(cache, "run", study, "-o", out, *sets, code=2)


@pytest.mark.slow
def test_a_run_of_another_study_is_where_training_begins(tmp_path: Path, cache: Path) -> None:
    results = tmp_path / "results"
    study = tmp_path / "next.yaml"
    study.write_text(NEXT)
    assert "there is no results folder" in refused(cache, study, results / "next")

    ablate(cache, "run", write_small(tmp_path, stable=2560), "-o", results / "small")
    assert "has no arm `more=0.4`; did you mean `more=0.3`?" in refused(
        cache, study, results / "next", "base.run=small/more=0.4/d1"
    )
    assert "has no seeds `d2`" in refused(cache, study, results / "next", "base.run=small/more=0.3/d2")
    assert "ended at a rate of 0; write that" in refused(cache, study, results / "next", "base.lr=1e-3")

    ablate(cache, "run", study, "-o", results / "next")
    small, following = Folder(results / "small"), Folder(results / "next")
    plan = read_json(following.plan_json)
    first = following.state(plan["runs"][0]["base"]).checkpoint(0)
    winner = next(run for run in plan_of(small.root)["runs"] if run["name"] == "more=0.3/d1")
    end = small.state(winner["path"][-1])
    last = end.checkpoint(end.checkpoint_tokens()[-1])
    for file in ("model/model.safetensors", "optimizer.safetensors"):
        assert sha256_file(first / file) == sha256_file(last / file), "its weights and its optimizer, to the bit"

    trained = final_weights(following.root)
    moved = tmp_path / "elsewhere"
    shutil.move(results, moved)
    again = ablate(cache, "run", study, "-o", moved / "next")
    assert "trained" not in again.partition("report:")[0].replace("trained 0 tokens", ""), again
    assert final_weights(moved / "next") == trained
    manifest = manifests.read_base(Folder(moved / "next"))
    assert manifest is not None and manifest["asked"]["model"] == {"run": "small/more=0.3/d1"}
