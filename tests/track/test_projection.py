"""What a dashboard shows of a study: ids, groups, job types, tags, configuration, metrics, summaries."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.launch.tracking import send
from harness.store.layout import Folder
from harness.store.plans import read_plan
from harness.track.projection import Projection
from harness.track.scores import dashboard_name, scores_of
from harness.track.settings import targets
from harness.track.tracker import TrackedRun
from tests.track.readers import wandb_files, wandb_records


def projected(root: Path, tags: tuple[str, ...] = ()) -> dict[str, TrackedRun]:
    folder = Folder(root)
    plan = read_plan(folder)
    assert plan is not None
    projection = Projection(folder, plan, tags)
    return {item.name: projection.tracked(item) for item in projection.all}


def test_ids_are_a_function_of_the_science_wherever_the_folder_lies(study: Path, tmp_path: Path) -> None:
    before = {name: run.id for name, run in projected(study.parent / "out").items()}
    shutil.move(study.parent / "out", tmp_path / "elsewhere")
    assert {name: run.id for name, run in projected(tmp_path / "elsewhere").items()} == before
    assert len(set(before.values())) == 3


def test_another_study_of_the_same_science_has_runs_of_its_own(study: Path) -> None:
    plan = json.loads((study.parent / "out" / "plan.json").read_text())
    folder = Folder(study.parent / "out")
    ids = [{item.id for item in Projection(folder, {**plan, "study": name}).all} for name in ("tracked", "other")]
    assert not ids[0] & ids[1]


def test_runs_are_grouped_by_study_and_shared_segments_are_named_as_such(study: Path) -> None:
    runs = projected(study.parent / "out")
    kinds = {name: (run.kind, run.group) for name, run in runs.items()}
    (segment,) = (name for name in runs if name.startswith("segments/stable-2560/d1/"))
    assert kinds == {
        segment: ("segment", "tracked"),
        "default/d1": ("run", "tracked"),
        "more=0.3/d1": ("run", "tracked"),
    }
    assert runs[segment].config["arm"] == "shared" and runs[segment].config["runs"] == 2


def test_tags_say_the_study_the_role_and_what_is_changed(study: Path) -> None:
    runs = projected(study.parent / "out", tags=("mine",))
    assert runs["default/d1"].tags == ("tracked", "baseline", "mine")
    assert runs["more=0.3/d1"].tags == ("tracked", "control", "decay.mixture", "mine")


def test_the_declared_changes_come_first_in_the_configuration(study: Path) -> None:
    config = projected(study.parent / "out")["more=0.3/d1"].config
    changes = {"changes.stages.decay.mixture.more": 0.3, "changes.stages.decay.mixture.sums": 0.7}
    assert dict(list(config.items())[:2]) == changes and list(config)[2] == "arm"
    assert config["science.decay.lr.linear@2560.to"] == 0
    assert config["science.stable.batch_tokens"] == 256 and config["seeds.data"] == 1
    assert all(isinstance(value, str | int | float | bool | None) for value in config.values())


def test_the_scores_are_those_of_the_report(study: Path) -> None:
    folder = Folder(study.parent / "out")
    plan = read_plan(folder)
    assert plan is not None
    with (study.parent / "out" / "report" / "table.csv").open(newline="") as file:
        table = {(row["row"], row["metric"]): row["mean"] for row in csv.DictReader(file) if row["point"] == "end"}
    for run in plan["runs"]:
        value = scores_of(folder, plan, run)["end"]["bpb/sums"]
        assert f"{value:.6g}" == table[run["arm"], "bpb.sums"]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("bpb.web", "bpb/web"),
        ("base.mmlu.acc", "eval/base/mmlu/acc"),
        ("base.average", "eval/base/average"),
        ("long.needle_4k.acc", "eval/long/needle_4k/acc"),
    ],
)
def test_metrics_have_a_dashboards_names(metric: str, name: str) -> None:
    assert dashboard_name(metric) == name


@pytest.fixture
def records(study: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each run's `.wandb` file."""
    folder = Folder(study.parent / "out")
    found_targets, _ = targets({"wandb": {"project": "mine", "mode": "offline", "tags": ["t"]}}, "tracked")
    (standing,) = send(folder, found_targets, 1, lambda note: None)
    assert standing.problem is None
    found = {}
    for file in wandb_files(folder.root):
        read = wandb_records(file)
        found[next(r["run"]["display_name"] for r in read if r["type"] == "run")] = read
    return found


def of(records: list[dict[str, Any]], kind: str) -> list[Any]:
    return [record[kind] for record in records if record["type"] == kind]


def test_the_wandb_file_holds_all_of_it(records: dict[str, list[dict[str, Any]]], study: Path) -> None:
    run = of(records["more=0.3/d1"], "run")[0]
    expected = projected(study.parent / "out", ("t",))["more=0.3/d1"]
    assert (run["run_id"], run["project"], run["run_group"], run["job_type"]) == (expected.id, "mine", "tracked", "run")
    assert run["tags"] == list(expected.tags)
    config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
    assert config == dict(expected.config)

    steps = {m["glob_name"]: m["step_metric"] for m in of(records["more=0.3/d1"], "metric") if "glob_name" in m}
    assert steps["train/*"] == steps["share/*"] == steps["epochs/*"] == "tokens"
    assert steps["bpb/*"] == steps["eval/*"] == "eval_tokens"

    history = [row["item"] for row in of(records["more=0.3/d1"], "history")]
    first, last = history[0], [row for row in history if "train/loss" in row][-1]
    assert (first["tokens"], first["share/sums"], first["epochs/sums"]) == (256, 1.0, pytest.approx(0.0154, abs=2e-2))
    assert (last["share/sums"], last["share/more"], last["context"]) == (0.7, 0.3, 64)
    assert {"train/lr", "train/grad_norm", "train/tokens_per_second", "train/loss/sums"} <= last.keys()


def test_the_summary_holds_the_scores_of_the_end(records: dict[str, list[dict[str, Any]]], study: Path) -> None:
    folder = Folder(study.parent / "out")
    plan = read_plan(folder)
    assert plan is not None
    for run in plan["runs"]:
        summary: dict[str, Any] = {}
        for record in of(records[run["name"]], "summary"):
            summary |= record.get("update") or {}
        expected = {**scores_of(folder, plan, run)["end"], "outcome": "trained"}
        assert {name: summary[name] for name in expected} == expected


def test_leet_shows_a_run(records: dict[str, list[dict[str, Any]]], study: Path) -> None:
    file = wandb_files(study.parent / "out")[0]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "state    finished (exit code 0)" in shown and "project  mine" in shown


def test_a_study_without_a_tracker_names_what_to_do(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["sync", str(study.parent / "out")]) == 2
    assert "tracks nothing (`track: none`); `--to wandb` names a tracker" in capsys.readouterr().err
