"""A study with controls: what they need runs first, the other arms wait, and go or stay by what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import verbs
from harness.launch import prepare
from harness.launch.run import Report
from harness.launch.status import status
from harness.plan import render
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from tests.launch.conftest import SCORED, TINY
from tests.launch.test_run import bring, options, path_of, starts

# The stub scores 2.0 everywhere.
AA = "  - {name: aa, same_as: default, seeds: {data: [4, 5]}}"
NUMBER = "  - {name: published, reproduce: {arm: default, metric: bpb.sums, value: VALUE, tolerance: 0.1}}"


def study(folder: Path, *controls: str, allow: str = "{}") -> Path:
    path = folder / "tiny.yaml"
    scored = SCORED.replace("primary: [bpb.sums]", f"primary: [bpb.sums], allow: {allow}")
    path.write_text(TINY + "controls:\n" + "\n".join(controls) + "\n" + scored)
    return path


def ends(report: Report) -> dict[str, str]:
    return {run.run: run.end for run in report.ended.runs}


def test_when_the_controls_pass_everything_is_trained_the_controls_first_and_a_second_run_does_nothing(
    tmp_path: Path,
) -> None:
    path = study(tmp_path, AA, NUMBER.replace("VALUE", "2.05"))
    first, notes = bring(options(path))
    assert first.ended.exit_code == 0 and first.held is None
    assert set(ends(first).values()) == {"done"}
    done = starts(first.folder)
    assert len(done) == len(set(done)) == 1 + 12 + 12
    others = {
        f"train:{path_of(first.folder, f'more={share}/{seed}')[-1]}" for share in (0, 0.3) for seed in ("d1", "d2")
    }
    needed = {f"train:{path_of(first.folder, run)[-1]}" for run in ("default/d1", "default/d2", "aa/d4", "aa/d5")}
    needed |= {item.replace("train:", "evaluate:") for item in needed}
    assert max(done.index(item) for item in needed) < min(done.index(item) for item in others)
    assert any("control aa: does not differ from `default`" in note for note in notes)
    assert read_json(first.folder.plan_json)["held"] == []

    second, notes = bring(options(path))
    assert starts(second.folder) == done
    assert (second.trained_tokens, second.evaluated, notes) == (0, 0, [])


def test_a_number_that_does_not_come_out_holds_the_other_arms_says_by_how_much_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(tmp_path, NUMBER.replace("VALUE", "2.5"))
    asked = options(path)
    assert verbs.reconcile(asked, False) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "bpb.sums of `default` at `end` is 2 (mean of 2 runs), expected 2.5 ± 0.1: off by 0.5" in said
    assert "2 arms are held: more=0, more=0.3." in said
    assert "`compare.allow: {published: [control-failed]}`" in said
    folder = Folder(tmp_path / "results")
    assert (folder.report / "index.html").exists()
    assert {run.name: (run.state, run.detail) for run in status(folder)}["more=0/d1"] == (
        "held",
        "control `published` failed",
    )
    trained = starts(folder)
    again, _ = bring(asked)
    assert again.ended.exit_code == 1 and starts(folder) == trained
    assert [run.run for run in again.ended.held] == ["more=0/d1", "more=0/d2", "more=0.3/d1", "more=0.3/d2"]

    allowed, _ = bring(options(study(tmp_path, NUMBER.replace("VALUE", "2.5"), allow="{published: [control-failed]}")))
    assert allowed.ended.exit_code == 0 and set(ends(allowed).values()) == {"done"}


def test_the_plan_shows_controls_and_who_waits_for_them(tmp_path: Path) -> None:
    path = study(tmp_path, AA, NUMBER.replace("VALUE", "2.5"))
    plan = prepare.planned(prepare.load(path), Folder(tmp_path / "results")).plan
    shown = render.text(plan)
    assert "control aa: default again with the seeds d4, d5" in shown
    assert "control published: bpb.sums of default at end must come to 2.5 ± 0.1" in shown
    assert "held (waits for control `aa`, `published`): more=0, more=0.3" in shown
    assert max(map(len, shown.splitlines())) <= 80
    found: dict[str, Any] = json.loads(json.dumps(plan.to_json()))
    assert [arm["name"] for arm in found["arms"] if arm["control"]] == ["aa"]
    assert {arm["same_as"] for arm in found["arms"] if arm["control"]} == {None}
    assert [run["name"] for run in found["runs"] if run["arm"] == "aa"] == ["aa/d4", "aa/d5"]
    assert [control["kind"] for control in found["controls"]] == ["same_as", "reproduce"]
    assert [entry["arm"] for entry in found["held"]] == ["more=0", "more=0.3"]


def test_a_control_whose_run_fails_keeps_the_others_waiting_and_the_next_run_goes_on(tmp_path: Path) -> None:
    path = study(tmp_path, AA)
    write_json(tmp_path / "results" / "behaviour.json", {"aa/d5": {"end": "error", "once": True}})
    first, _ = bring(options(path))
    assert first.ended.exit_code == 1
    assert ends(first)["aa/d5"] == "failed" and ends(first)["more=0/d1"] == "held"
    assert first.held is not None and "not known yet: waits for `aa/d5`" in " ".join(first.held.split())
    second, _ = bring(options(path))
    assert second.ended.exit_code == 0 and set(ends(second).values()) == {"done"}


def test_with_one_run_on_each_side_the_others_go_with_a_note(tmp_path: Path) -> None:
    path = study(tmp_path, AA.replace("4, 5", "4"))
    done, notes = bring(options(path, overrides=("seeds.data=[1]",)))
    assert done.ended.exit_code == 0
    assert any("control aa: not estimated with one run on each side" in note for note in notes)


def test_evaluating_what_is_there_holds_nothing(tmp_path: Path) -> None:
    """`ablate eval` trains nothing, so there is nothing to hold back."""
    bring(options(study(tmp_path, AA)))
    evaluated, _ = bring(options(study(tmp_path, NUMBER.replace("VALUE", "2.5")), train=False))
    assert evaluated.ended.exit_code == 0


def test_an_aa_arm_re_keys_nothing(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(TINY + SCORED)
    plain = prepare.planned(prepare.load(tmp_path / "plain.yaml"), Folder(tmp_path / "none")).plan
    with_aa = prepare.planned(prepare.load(study(tmp_path, AA)), Folder(tmp_path / "none")).plan
    assert set(plain.segments) < set(with_aa.segments)
    assert [run.path for run in plain.runs] == [run.path for run in with_aa.runs if run.arm != "aa"]
