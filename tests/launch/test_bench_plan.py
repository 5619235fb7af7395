"""The grid that `ablate bench plan` times is a study like any other: three stages, a mixture axis, three seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch import bench_plan


def test_the_bench_plans_a_whole_grid_and_says_what_it_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plan, "SIDE", 3)
    monkeypatch.setattr(bench_plan, "RUNS", 2)
    found = bench_plan.bench()
    assert (found["arms"], found["runs"]) == (10, 30)
    assert found["segments"] == 3 + 30 + 30
    assert 0 < found["seconds"]["min"] <= found["seconds"]["median"] <= found["seconds"]["max"]


def test_no_option_of_the_grid_is_refused(tmp_path: Path) -> None:
    from harness.study import load_study

    path = tmp_path / "grid.yaml"
    path.write_text(bench_plan.STUDY.format(shares="0, 0.2", rates="1e-6, 2e-6"))
    assert len(load_study(path).arms) == 5
