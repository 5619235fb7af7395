"""Merges in a results folder, with a stub in the place of training: what waits for what, and how all of it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.compare import compare
from analysis.frame import read_frame
from harness.launch import prepare, verify
from harness.launch.gc import collect, garbage
from harness.launch.status import status
from harness.store import plans
from harness.store.atomic import read_json, read_json_lines, write_json
from harness.store.layout import Folder
from harness.study.errors import UserError
from harness.track.projection import Projection
from tests.launch.conftest import SCORED, TINY
from tests.launch.test_run import bring, options, path_of, starts

MERGE = """\
merge:
  soup: {of: seeds, arm: more=0.3}
  both: {of: arms, arms: [more=0, more=0.3], weights: [1, 2]}
  wsm: {of: checkpoints, arm: trunk, over: 2560, every: 512, decay: linear}
"""
RUNS = ("soup/d1+d2", "both/d1", "both/d2", "wsm/d1", "wsm/d2")
TRUNK = "  - cases: {trunk: {stages.decay.lr: {shape: constant}}}\n"
ALLOW = "allow: {trunk: [schedule-open], soup: [unequal-tokens], both: [unequal-tokens]}"


def write(folder: Path, merge: str = MERGE, more: str = "") -> Path:
    path = folder / "tiny.yaml"
    allow = ALLOW if merge else ALLOW.partition(", soup")[0] + "}"
    scored = SCORED.replace("primary: [bpb.sums]", f"primary: [bpb.sums], {allow}")
    path.write_text(TINY.replace("seeds: {", f"{TRUNK}{merge}seeds: {{") + more + scored)
    return path


def behave(folder: Path, **runs: Any) -> None:
    (folder / "results").mkdir(exist_ok=True)
    write_json(folder / "results" / "behaviour.json", {name.replace("__", "/"): how for name, how in runs.items()})


def parts_of(folder: Folder, name: str) -> list[str]:
    plan = read_json(folder.plan_json)
    (state,) = path_of(folder, name)
    return list(next(segment["parents"] for segment in plan["segments"] if segment["id"] == state))


def report_of(folder: Folder) -> str:
    return (folder.report / "report.md").read_text()


def ends(study: Path) -> dict[str, str]:
    report, _ = bring(options(study))
    return {run.run: run.end for run in report.ended.runs}


def words(folder: Folder) -> dict[str, tuple[str, str]]:
    return {run.name: (run.state, run.detail) for run in status(folder)}


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_a_merge_is_made_after_all_of_its_parts_and_evaluated_and_a_second_run_does_nothing(
    executor: str, tmp_path: Path
) -> None:
    study = write(tmp_path)
    first, _ = bring(options(study, executor=executor))
    assert first.ended.exit_code == 0 and {run.end for run in first.ended.runs} == {"done"}
    log = [(line["what"], line["id"]) for line in read_json_lines(first.folder.root / "log.jsonl")]
    assert len({name for _, name in log}) * 2 == len(log)
    for name in RUNS:
        (state,) = path_of(first.folder, name)
        begun = log.index(("start", f"merge:{state}"))
        assert all(log.index(("end", f"train:{part}")) < begun for part in parts_of(first.folder, name)), name
        assert log.index(("end", f"merge:{state}")) < log.index(("start", f"evaluate:{state}"))
    assert {words(first.folder)[name][0] for name in RUNS} == {"done"}
    before = starts(first.folder)
    second, notes = bring(options(study, executor=executor))
    assert (second.trained_tokens, second.evaluated, notes) == (0, 0, []) and starts(second.folder) == before


def test_merges_of_a_folder_that_was_trained_before_train_the_window_again_and_nothing_else(tmp_path: Path) -> None:
    first, _ = bring(options(write(tmp_path, merge="")))
    before = starts(first.folder)
    prepared = prepare.planned(prepare.load(write(tmp_path)), first.folder)
    again = [s for s in prepared.plan.segments.values() if s.needed and s.kind == "train"]
    assert len(again) == 2 * 5 and {s.state for s in again} == {"recomputed"}
    assert again[0].reason.startswith("no checkpoint was kept at token 16,640: 3,840 tokens again from token 12,800")
    assert prepared.plan.totals["tokens_to_train"] == 2 * (6400 - 512), "all but the last interval"
    second, _ = bring(options(study := tmp_path / "tiny.yaml"))
    new = starts(second.folder)[len(before) :]
    assert {name.partition(":")[0] for name in new} == {"train", "merge", "evaluate"}
    assert sorted(n for n in new if n.startswith("train:")) == sorted(f"train:{s.id}" for s in again)
    assert sum(name.startswith("merge:") for name in new) == sum(name.startswith("evaluate:") for name in new) == 5
    third = ends(study)
    assert set(third.values()) == {"done"} and starts(second.folder) == [*before, *new]
    write(tmp_path, merge="")
    assert set(ends(study).values()) == {"done"} and starts(second.folder) == [*before, *new], "nor without them"


def test_a_part_that_fails_takes_its_merges_along_and_the_next_run_makes_them(tmp_path: Path) -> None:
    study = write(tmp_path)
    behave(tmp_path, **{"more=0.3__d2": {"end": "error"}})
    found = ends(study)
    failed = {name for name, end in found.items() if end == "failed"}
    assert failed == {"more=0.3/d2", "soup/d1+d2", "both/d2"} and found["both/d1"] == found["wsm/d2"] == "done"
    folder = Folder(tmp_path / "results")
    state, detail = words(folder)["soup/d1+d2"]
    assert state == "failed" and detail.startswith("a part of it failed")
    behave(tmp_path)
    assert set(ends(study).values()) == {"done"}


def test_a_diverged_part_is_a_result_for_its_merges_too(tmp_path: Path) -> None:
    study = write(tmp_path)
    behave(tmp_path, **{"more=0.3__d2": {"end": "diverged"}})
    report, _ = bring(options(study))
    assert report.ended.exit_code == 0
    found = {run.run: run.end for run in report.ended.runs}
    diverged = {name for name, end in found.items() if end == "diverged"}
    assert diverged == {"more=0.3/d2", "soup/d1+d2", "both/d2"} and found["both/d1"] == "done"
    assert words(report.folder)["both/d2"][0] == "diverged"
    frame = read_frame(report.folder.root)
    assert {run.name for run in frame.runs if run.status == "diverged"} == diverged
    assert frame.count("both") == {"done": 1, "diverged": 1, "planned": 2}
    assert ("soup/d1+d2", "end", "bpb.sums") not in frame.values and "0 of 1 state" in report_of(report.folder)
    before = starts(report.folder)
    assert set(ends(study).values()) == {"done", "diverged"} and starts(report.folder) == before
    plan = plans.read_plan(report.folder)
    assert plan is not None
    projection = Projection(report.folder, plan)
    items = {item.name: item for item in projection.all}
    assert projection.ended(items["both/d2"]) and projection.diverged(items["both/d2"])
    assert not projection.diverged(items["both/d1"])


def test_the_numerics_of_a_merged_run_are_those_that_its_parts_were_trained_with(tmp_path: Path) -> None:
    report, _ = bring(options(write(tmp_path)))
    kept = {"device": "cpu", "threads": 1, "micro_batch": 2, "torch": "2"}
    for name in ("wsm/d1", "trunk/d1", "soup/d1+d2", "more=0.3/d1", "more=0.3/d2"):
        for state in path_of(report.folder, name):
            folder = report.folder.state(state)
            for number in folder.attempt_numbers():
                env = read_json(folder.attempt(number) / "env.json")
                kernels = "auto" if name in ("wsm/d1", "soup/d1+d2") else "attention flash, loss liger"
                write_json(folder.attempt(number) / "env.json", {**env, "numerics": {**kept, "kernels": kernels}})
    for name in ("wsm/d1", "trunk/d1", "soup/d1+d2"):
        assert verify.numerics_of(report.folder, name)["kernels"] == {"attention": "flash", "loss": "liger"}
    with pytest.raises(UserError, match="no run `wsn/d1`"):
        verify.numerics_of(report.folder, "wsn/d1")


def test_a_merge_that_is_killed_is_made_at_the_next_try(tmp_path: Path) -> None:
    study = write(tmp_path)
    behave(tmp_path, both__d1={"kind": "merge", "end": "die", "once": True})
    report, _ = bring(options(study, executor="local"))
    assert {run.end for run in report.ended.runs} == {"done"}
    (state,) = path_of(report.folder, "both/d1")
    assert starts(report.folder).count(f"merge:{state}") == 2
    assert len(report.folder.state(state).attempt_numbers()) == 2


def test_merges_wait_for_the_controls_of_the_study(tmp_path: Path) -> None:
    control = "controls:\n  - {name: published, reproduce: {metric: bpb.sums, value: 9.0, tolerance: 0.1}}\n"
    found = ends(write(tmp_path, more=control))
    assert {name for name, end in found.items() if end == "held"} == {name for name in found if "default" not in name}
    assert not [name for name in starts(Folder(tmp_path / "results")) if name.startswith("merge:")]


def test_an_alteration_of_merged_weights_is_named_and_made_good_without_training(tmp_path: Path) -> None:
    study = write(tmp_path)
    report, _ = bring(options(study))
    (state,) = path_of(report.folder, "wsm/d1")
    before = starts(report.folder)
    weights = next(report.folder.state(state).checkpoints.glob("*/model/model.safetensors"))
    weights.write_text("altered")
    again, notes = bring(options(study))
    assert any("altered" in note or str(weights) in note for note in notes) and again.ended.exit_code == 0
    assert starts(again.folder)[len(before) :] == [f"merge:{state}", f"evaluate:{state}"]


def test_merges_that_the_study_has_no_more_go_and_what_an_unfinished_one_is_made_of_stays(tmp_path: Path) -> None:
    study = write(tmp_path)
    report, _ = bring(options(study))
    assert garbage(report.folder).found == ()
    merged = {path_of(report.folder, name)[0] for name in RUNS}
    parts = parts_of(report.folder, "soup/d1+d2")
    (soup,) = path_of(report.folder, "soup/d1+d2")
    write(tmp_path, merge="").write_text(study.read_text().replace("values: [0, 0.3]", "values: [0]"))
    bring(options(study))
    found = garbage(report.folder)
    assert {waste.path.name for waste in found.found} == merged | set(parts)
    assert {waste.kind for waste in found.found} == {"orphan"}
    report.folder.state(soup).done.unlink()
    found = garbage(report.folder)
    assert dict(found.spared) == dict.fromkeys(parts, "a state that starts from it is not finished")
    collect(found)
    before = starts(report.folder)
    assert set(ends(study).values()) == {"done"} and starts(report.folder) == before


def test_one_model_of_all_seeds_is_a_row_without_tests(tmp_path: Path) -> None:
    report, _ = bring(options(write(tmp_path)))
    frame = read_frame(report.folder.root)
    assert "soup" not in {arm.name for arm in frame.compared} and {"both", "wsm"} < {a.name for a in frame.compared}
    assert frame.seeds == ("d1", "d2")
    page = report_of(report.folder)
    assert "soup (one model of more=0.3/d1, more=0.3/d2, merged at 19,200 tokens)" in page
    claims = read_json(report.folder.report / "claims.json")
    assert {claim["arm"] for claim in claims["claims"]} == {"more=0", "more=0.3", "trunk", "both", "wsm"}
    with pytest.raises(UserError, match="one model merged over all seeds"):
        compare(report.folder.root, "soup", "default")
    lines = compare(report.folder.root, "wsm", "trunk")
    assert lines["a"]["runs"] == "2 of 2"


def test_a_dashboard_shows_a_merge_as_a_run_with_scores_and_without_updates(tmp_path: Path) -> None:
    report, _ = bring(options(write(tmp_path)))
    plan = plans.read_plan(report.folder)
    assert plan is not None
    projection = Projection(report.folder, plan)
    items = {item.name: item for item in projection.all}
    soup = items["soup/d1+d2"]
    assert projection.ended(soup) and projection.scored_points(soup) == ["end"]
    tracked = projection.tracked(soup)
    assert tracked.kind == "run" and tracked.config["made_of"] == "more=0.3/d1, more=0.3/d2"
    assert tracked.config["changes.merge.of"] == "seeds" and tracked.config["seeds.data"] == "1, 2"
    assert not [name for name in tracked.config if name.startswith("science")], "what its parts are, they say"
    assert len({item.id for item in projection.all}) == len(projection.all)
