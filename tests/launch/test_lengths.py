"""Lengths solved for equal compute, and levels over a source's cap, once the manifests are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.launch import prepare
from harness.study.errors import UserError
from tests.launch.conftest import TINY
from tests.launch.test_run import bring, options

LONGER = """\
  - cases:
      equal: {stages.decay.context: {length: 128}, stages.decay.tokens: {flops_of: default}}
      same-as-short: {stages.decay.tokens: {flops_of: more=0}}
compare: {control: more=0, allow: {equal: [unequal-tokens]}}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def planned(study: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.call(["plan", str(study), "-o", str(study.parent / "results"), "--json"]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def test_a_path_is_solved_to_the_compute_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = written(tmp_path, TINY.replace("absorb: sums}\n", "absorb: sums}\n" + LONGER.partition("compare")[0]))
    study.write_text(study.read_text() + "compare" + LONGER.partition("compare")[2])
    before = planned(study, capsys)
    assert {"the length of equal", "the length of same-as-short"} <= set(before["unresolved"])

    report, _ = bring(options(study))
    assert report.ended.exit_code == 0
    plan = planned(study, capsys)
    assert plan["unresolved"] == []
    prepared = prepare.planned(prepare.load(study), prepare.folder_of(prepare.load(study), tmp_path / "results"))
    shape = prepared.plan.shape
    assert shape is not None
    ends = {run["arm"]: run["points"][-1]["tokens"] for run in plan["runs"]}
    short, long = shape.flops_per_token(64), shape.flops_per_token(128)
    decay = ends["equal"] - 12_800
    assert 0 < decay < 6_400, "longer rows cost more, so fewer tokens"
    assert abs(decay * long - 6_400 * short) <= 128 * long, "to half a batch of 256"
    assert plan["arms"][-1]["name"] == "same-as-short"
    assert plan["arms"][-1]["same_as"] == "default", "equal rows, equal cost, equal length: one arm with two names"


CAPPED = TINY.replace("seed: 1}", "seed: 1, max_epochs: 0.05}")


def test_a_level_over_the_cap_is_an_error_that_names_the_largest_share(tmp_path: Path) -> None:
    study = written(tmp_path, CAPPED.replace("values: [0, 0.3]", "values: [0, 0.9]"))
    with pytest.raises(UserError, match=r"source `more`.* max_epochs is 0\.05; at most .* a share of 0\.\d+ in stage"):
        bring(options(study))


def test_a_level_over_the_cap_is_dropped_where_that_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CAPPED.replace("{sums: 0.5, more: 0.5}", "{sums: 0.9, more: 0.1}").replace("[0, 0.3]", "[0, 0.9]")
    study = written(tmp_path, text.replace("absorb: sums}", "absorb: sums, over: drop}"))
    assert planned(study, capsys)["dropped"] == [], "pools are not known yet"
    report, _ = bring(options(study))
    assert {run.run for run in report.ended.runs} == {
        f"{arm}/{seed}" for arm in ("default", "more=0") for seed in ("d1", "d2")
    }
    plan = planned(study, capsys)
    assert [arm["name"] for arm in plan["arms"]] == ["default", "more=0"]
    assert [entry["arm"] for entry in plan["dropped"]] == ["more=0.9"]
    assert "a share of" in plan["dropped"][0]["why"]


def test_a_baseline_is_never_dropped(tmp_path: Path) -> None:
    text = CAPPED.replace("{sums: 0.5, more: 0.5}", "{sums: 0.9, more: 0.1}").replace("[0, 0.3]", "[0, 0.9]")
    text = text.replace("absorb: sums}", "absorb: sums, over: drop}") + "compare: {baseline: more=0.9}\n"
    with pytest.raises(UserError, match=r"`more=0\.9` is left out"):
        bring(options(written(tmp_path, text)))
