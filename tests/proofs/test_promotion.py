"""A winner is promoted: a run of one study is where another begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.store import manifests
from harness.store.atomic import read_json, sha256_file
from harness.store.layout import Folder
from tests.proofs.ablate import ablate, final_weights, plan_of, updates
from tests.proofs.small import Finished, write_small

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


BRANCHES = """\
schema: 1
study: branches
base: {run: RUN, optimizer: DECLARED}
sources:
  sums: {builtin: arithmetic, documents: 200}
train: {batch_tokens: 256, mixture: {sums: 1.0}, context: {length: 64}, optimizer: {lr: 1.0e-3}}
stages:
  more: {tokens: 1024, lr: {shape: linear, to: 0}}
"""


def branched(place: Path, run: str, declared: str, arm: str | None = None) -> dict[str, tuple[str, bool, str]]:
    """A study whose base is `declared` and whose arm, if any, says otherwise, trained: `carried` and `cold` → name of
    the state at the end, whether the state at step 0 has the optimizer's, and the weights at the end."""
    place.mkdir(exist_ok=True)
    ablate = "" if arm is None else f"ablate: [{{cases: {{other: {{base.optimizer: {arm}}}}}}}]\n"
    (place / "branches.yaml").write_text(BRANCHES.replace("RUN", run).replace("DECLARED", declared) + ablate)
    folder = place / "out"
    said = ["run", str(place / "branches.yaml"), "-o", str(folder), "--executor", "debug", "--yes"]
    assert cli.call(said) == 0
    weights = final_weights(folder)
    found = {}
    for planned in plan_of(folder)["runs"]:
        base = Folder(folder).state(planned["base"]).checkpoint(0)
        of = declared if planned["arm"] == "default" else str(arm)
        there = (base / "optimizer.safetensors").is_file()
        found[of] = planned["path"][-1], there, weights[planned["name"]]
    return found


def test_an_arm_begins_with_the_optimizer_that_it_says_whatever_the_study_says(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    run = f"{finished.root / 'out'}/more=0.3/d1"
    cold, carried = (branched(tmp_path / name, run, name) for name in ("cold", "carried"))
    (_, has_none, of_cold), (_, has_one, of_carried) = cold["cold"], carried["carried"]
    assert (has_none, has_one) == (False, True)
    assert of_cold != of_carried
    assert branched(tmp_path / "cold-first", run, "cold", "carried") == {**cold, **carried}
    assert branched(tmp_path / "carried-first", run, "carried", "cold") == {**cold, **carried}


def test_an_arm_that_carries_the_optimizer_renames_and_retrains_no_arm_that_is_cold(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    run, place = f"{finished.root / 'out'}/more=0.3/d1", tmp_path / "study"
    alone = branched(place, run, "cold")
    text = (place / "branches.yaml").read_text()
    (place / "branches.yaml").write_text(text + "ablate: [{cases: {other: {base.optimizer: carried}}}]\n")

    def planned() -> dict[str, Any]:
        capsys.readouterr()
        assert cli.call(["plan", str(place / "branches.yaml"), "-o", str(place / "out"), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    before = planned()
    assert before["unresolved"] == ["base.optimizer"]
    assert before["totals"]["tokens_to_train"] == 1024, "of the new arm alone"
    both = branched(place, run, "cold", "carried")
    assert both["cold"] == alone["cold"]
    assert sorted(updates(place / "out").values()) == [4, 4]
    (place / "branches.yaml").write_text(text)
    assert (planned()["unresolved"], planned()["totals"]["tokens_to_train"]) == ([], 0)


def test_an_arm_whose_optimizer_is_not_there_is_refused_before_anything_is_trained(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    small = Folder(finished.root / "out")
    end = small.state(plan_of(small.root)["runs"][0]["path"][-1])
    shutil.copytree(end.checkpoint(end.checkpoint_tokens()[-1]) / "model", tmp_path / "bare" / "model")
    text = BRANCHES.replace("run: RUN", f"model: {tmp_path / 'bare' / 'model'}").replace("DECLARED", "cold")
    study = tmp_path / "branches.yaml"
    study.write_text(text + "ablate: [{cases: {other: {base.optimizer: carried}}}]\n")
    assert cli.call(["run", str(study), "-o", str(tmp_path / "out"), "--executor", "debug", "--yes"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"there is no optimizer.safetensors in {tmp_path}/bare/model or in {tmp_path}/bare." in said
    assert "expected `base.optimizer: cold`" in said
    assert list(Folder(tmp_path / "out").all_states()) == []
