"""Merged arms in the report: means of runs that are there already change nothing that is said of the trained ones."""

from __future__ import annotations

import csv
import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import appendix, audit, statistics
from analysis.caption import caption
from analysis.claims import answers, claims
from analysis.compare import compare, compare_text
from analysis.effects import Comparisons
from analysis.frame import Frame, read_frame
from analysis.margins import best_arms, retained
from analysis.report import build
from analysis.tables import build_rows, table_csv
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from tests.analysis.fabricate import EFFECTS, END, TRUNK, Design, fabricate

MERGED = ("both", "wsm")
TRAINED = tuple(arm for arm in EFFECTS if arm != "default")


def with_merges(root: Path, **options: Any) -> Path:
    """A fabricated folder whose last two arms the plan calls merges; their values are in the table as they were."""
    effects = {**EFFECTS, **dict.fromkeys(MERGED, EFFECTS["math=0.3"])}
    margins = {"bpb.docs": 0.05}
    fabricate(root, Design(effects=effects, not_worse=margins, **options))
    folder = Folder(root)
    plan = read_json(folder.plan_json)
    for arm in plan["arms"]:
        if arm["name"] in MERGED:
            arm["merge"] = "arms"
    for run in plan["runs"]:
        if run["arm"] in MERGED:
            run["made_of"] = [f"{arm}/{run['seed_set']}" for arm in ("default", "math=0.3")]
            facts = {"made of": ", ".join(run["made_of"]), "coefficients": "1/2, 1/2"}
            plan["science"][run["name"]]["facts"] = facts
    write_json(folder.plan_json, plan)
    return root


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_merges(tmp_path_factory.mktemp("merged") / "results")


def without(frame: Frame) -> Frame:
    from dataclasses import replace

    arms = tuple(arm for arm in frame.arms if arm.merge is None)
    return replace(frame, arms=arms, runs=tuple(run for run in frame.runs if run.arm not in MERGED))


def test_merges_change_nothing_that_is_said_of_the_trained_arms(merged: Path) -> None:
    frame = read_frame(merged)
    with_them, alone = Comparisons(frame), Comparisons(without(frame))
    assert with_them.family == alone.family == (4, 3)
    for metric in frame.metrics:
        fit, own = with_them.fits[metric.name], alone.fits[metric.name]
        assert fit is not None and own is not None
        assert (fit.arms, fit.df, fit.n) == (own.arms, 8, 15)
        assert fit.residual_variance == own.residual_variance
        assert with_them.unvarying(metric.name) == alone.unvarying(metric.name)
        assert best_arms(with_them, metric) == best_arms(alone, metric)
        for arm in TRAINED:
            d, before = with_them.to_baseline[arm, metric.name], alone.to_baseline[arm, metric.name]
            assert (d.critical, d.interval, d.adjusted) == (before.critical, before.interval, before.adjusted)
            assert with_them.to_control.get((arm, metric.name)) == alone.to_control.get((arm, metric.name))
    for name in TRAINED:
        assert retained(with_them)[name, "bpb.docs"] == retained(alone)[name, "bpb.docs"]


def test_a_merged_arm_has_the_paired_t_interval_of_its_own_seeds(merged: Path) -> None:
    frame = read_frame(merged)
    for reference in ("default", "control"):
        d = Comparisons(frame).difference(frame.by_name["bpb.math"], "wsm", reference)
        a, b = ([frame.at_end(arm, "bpb.math")[s].value for s in frame.seeds] for arm in ("wsm", reference))
        paired = stats.ttest_rel(a, b)
        low, high = paired.confidence_interval(0.95)
        assert d.merged and d.df == 2 and d.interval == pytest.approx((low, high))
        assert d.run_se == pytest.approx(np.std(np.subtract(a, b), ddof=1) / math.sqrt(3))
        assert (d.adjusted, d.critical, d.mde, d.verdict) == (None, None, None, None)


def test_the_report_says_that_a_merged_arm_is_in_no_test(merged: Path) -> None:
    frame = read_frame(merged)
    comparisons = Comparisons(frame)
    said = "Merged of these runs, so in no test and never marked: `both`, `wsm`"
    assert said in caption(frame, comparisons, frame.primary)
    for _, clauses in answers(frame, comparisons):
        assert clauses[-1] == "no test (merged of these runs): `both` and `wsm`."
    found = claims(frame, comparisons)
    mine = [claim for claim in found["claims"] if claim["arm"] == "wsm"]
    assert len(mine) == 3
    for claim in mine:
        assert (claim["verdict"], claim["adjusted_ci"], claim["tested"], claim["merge"]) == (None, None, False, "arms")
        assert claim["variance"]["where"] == "paired differences of its own seeds"
        assert claim["variance"]["df"] == 2 and claim["variance"]["residual_sd"] is None
    assert not any("tested" in claim for claim in found["claims"] if claim["arm"] not in MERGED)
    kept = {item["arm"]: item for item in found["not_worse"]}
    assert (kept["wsm"]["verdict"], kept["wsm"]["reason"]) == ("not estimated", "merged, no test")
    rows = build_rows(frame, comparisons)
    lines = list(csv.DictReader(io.StringIO(table_csv(frame, comparisons, rows))))
    (line,) = [line for line in lines if line["row"] == "wsm" and line["metric"] == "bpb.math"]
    assert line["ci95_low"] and not any(line[name] for name in ("run_se", "adjusted_low", "verdict", "residual_sd"))
    build(merged)
    page = (merged / "report" / "report.md").read_text()
    assert said in page and page.count("| no test |") == 2 * 3
    assert (
        said.replace("`both`, `wsm`", "<code>both</code>, <code>wsm</code>")
        in (merged / "report" / "index.html").read_text()
    )


def test_the_appendix_and_the_costs_of_a_merged_arm_are_those_of_its_parts(merged: Path) -> None:
    frame = read_frame(merged)
    changed = appendix.differences(frame)["wsm"]
    assert [(c.field, c.baseline, c.arm) for c in changed] == [
        ("made of", "—", "default/d1, math=0.3/d1"),
        ("coefficients", "—", "1/2, 1/2"),
    ]
    costs = audit.costs(frame)
    assert costs["default"].tokens == END
    assert costs["wsm"].tokens == TRUNK + 2 * (END - TRUNK), "the trunk that both parts share once"


def test_numerics_of_a_merge_are_no_fact_of_the_report(merged: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    shutil.copytree(merged, root)
    plan = read_json(root / "plan.json")
    state = next(run["path"][-1] for run in plan["runs"] if run["name"] == "wsm/d1")
    env = root / "states" / state / "attempts" / "0" / "env.json"
    record = read_json(env)
    write_json(env, {**record, "numerics": {**record["numerics"], "kernels": "auto"}})
    assert [fact for fact in audit.facts(read_frame(root)) if fact.name == "numerics.kernels"]
    next(segment for segment in plan["segments"] if segment["id"] == state)["kind"] = "merge"
    write_json(root / "plan.json", plan)
    assert not [fact for fact in audit.facts(read_frame(root)) if fact.name == "numerics.kernels"]


def test_compare_gives_a_merged_arm_the_error_of_its_own_seeds(merged: Path) -> None:
    found = compare(merged, "wsm", "default")
    assert {line["df"] for line in found["metrics"] if line["ci95"]} == {2}
    (margin,) = [line["margin"] for line in found["metrics"] if line["margin"] is not None]
    assert margin["bound"] is not None
    assert "error of these seeds alone (a merged arm)" in " ".join(compare_text(found).split())


def test_with_one_seed_the_error_of_a_merged_arm_is_not_estimated(tmp_path: Path) -> None:
    frame = read_frame(with_merges(tmp_path / "results", seeds=("d1",)))
    d = Comparisons(frame).to_baseline["wsm", "bpb.math"]
    assert d.estimate is not None and (d.run_se, d.interval, d.reason) == (None, None, "one seed")


def marked(rng: np.random.Generator, merges: int, rounds: int, in_fit: bool) -> float:
    """Share of A/A studies (4 equal arms and a baseline × 3 seeds) that mark an arm. Merges are means of two arms."""
    seeds, arms = ("x", "y", "z"), [f"a{i}" for i in range(5)]
    false = 0
    for _ in range(rounds):
        by_seed = rng.normal(0, 3, 3)
        cells = {(a, s): float(rng.normal(by_seed[i], 1.0)) for a in arms for i, s in enumerate(seeds)}
        for k in range(merges if in_fit else 0):
            first, second = f"a{k % 5}", f"a{(k + 2) % 5}"
            cells |= {(f"m{k}", s): (cells[first, s] + cells[second, s]) / 2 for s in seeds}
        fit = statistics.fit_additive(cells)
        critical = statistics.dunnett_critical(len(fit.arms) - 1, fit.df)
        others = [arm for arm in fit.arms if arm != "a0"]
        false += any(
            abs(fit.contrast(arm, "a0")) > critical * math.sqrt(fit.residual_variance * fit.unit_variance(arm, "a0"))
            for arm in others
        )
    return false / rounds


def test_merges_in_the_fit_would_mark_equal_arms_far_too_often() -> None:
    """Why they are in no fit: what they are made of is in it already."""
    rounds = 1000
    assert marked(np.random.default_rng(3), 5, rounds, in_fit=False) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)
    assert marked(np.random.default_rng(3), 5, rounds, in_fit=True) > 0.12
