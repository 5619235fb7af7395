"""What differs between two calls of `ablate run` is found in the folder, and stands in its plan.json afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from harness.launch import prepare
from harness.store import manifests
from harness.store.atomic import append_json_line, read_json, write_json
from harness.store.layout import Folder
from tests.launch.test_run import bring, options, path_of

MORE = "values: [0, 0.3]", "values: [0, 0.3, 0.4]"


def findings(folder: Folder, code: str) -> list[dict[str, Any]]:
    return [item for item in read_json(folder.plan_json)["lint"] if item["code"] == code]


def add_an_arm(study: Path) -> None:
    study.write_text(study.read_text().replace(*MORE))


def test_an_arm_that_is_added_with_other_threads_is_named_after_the_run(scored: Path) -> None:
    first, _ = bring(options(scored))
    assert not findings(first.folder, "different-numerics")
    add_an_arm(scored)
    bring(options(scored, overrides=("launch.threads=2",)))
    (item,) = findings(first.folder, "different-numerics")
    assert (item["level"], item["arm"]) == ("warning", "more=0.4")
    assert "threads 1, 2; baseline 1" in item["message"]  # the trunk was trained with one
    _, notes = bring(options(scored))
    assert any(note.startswith("warning different-numerics [more=0.4]") for note in notes)
    assert "different-numerics" in (first.folder.report / "report.md").read_text()


def test_a_result_of_earlier_settings_beside_new_ones_is_named(scored: Path) -> None:
    first, _ = bring(options(scored))
    write_json(first.folder.root / "behaviour.json", {"more=0/d1": {"kind": "evaluate", "end": "error"}})
    bring(options(scored, overrides=("eval.held_out.documents=5",)))
    found = findings(first.folder, "different-evaluation")
    assert [(item["level"], item["arm"]) for item in found] == [("warning", "more=0")] * 2  # its two held-out sources
    assert "computed with other settings" in found[0]["message"]


def test_a_tokenizer_file_that_is_replaced_between_two_runs_is_named(scored: Path, tmp_path: Path) -> None:
    def tokenizer_of(vocab: int) -> Path:
        (tmp_path / str(vocab)).mkdir()
        made = tmp_path / str(vocab) / "tiny.yaml"
        made.write_text(scored.read_text().replace("vocab: 300", f"vocab: {vocab}"))
        prepare.resolved_plan(prepare.load(made), Folder(tmp_path / str(vocab) / "out"), True, lambda line: None)
        base = manifests.read_base(Folder(tmp_path / str(vocab) / "out"))
        assert base is not None
        return Path(base["tokenizer"]["path"])

    own, one, other = tmp_path / "tokenizer", tokenizer_of(300), tokenizer_of(290)
    shutil.copytree(one, own)
    scored.write_text(scored.read_text().replace("{bpe: {vocab: 300, sources: [sums]}}", str(own)))
    first, _ = bring(options(scored))
    shutil.rmtree(own)
    shutil.copytree(other, own)
    write_json(first.folder.root / "behaviour.json", {"default/d1": {"end": "error"}})
    _, notes = bring(options(scored))
    assert any(note.startswith("warning different-tokenizer") for note in notes)
    (item,) = findings(first.folder, "different-tokenizer")
    assert "trained states were made with the tokenizer" in item["message"]
    (first.folder.root / "behaviour.json").unlink()
    bring(options(scored))
    assert not findings(first.folder, "different-tokenizer"), "every run was trained anew"


def test_updates_that_two_attempts_of_one_class_computed_differently_are_named(scored: Path) -> None:
    first, _ = bring(options(scored))
    leaf = first.folder.state(path_of(first.folder, "more=0/d1")[-1])
    shutil.copytree(leaf.attempt(0), leaf.attempt(1))
    for number, loss in ((0, 2.0), (1, 2.5)):
        append_json_line(leaf.attempt(number) / "metrics.jsonl", {"tokens": 13_056, "loss": loss})
    bring(options(scored, overrides=("question=again",)))
    plan = prepare.planned(prepare.load(scored), first.folder).plan
    (item,) = [item for item in plan.lint if item.code == "same-declaration-different-results"]
    assert item.arm == "more=0" and "13,056" in item.message
    env = read_json(leaf.attempt(1) / "env.json")
    write_json(leaf.attempt(1) / "env.json", {**env, "numerics": {"threads": 4}})
    plan = prepare.planned(prepare.load(scored), first.folder).plan
    assert "same-declaration-different-results" not in {item.code for item in plan.lint}, "other numerics, other bits"
