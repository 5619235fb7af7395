"""Non-inferiority margins, who may be best, and differences by cost: what the report says and with which bounds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import statistics
from analysis.claims import margin_answers
from analysis.compare import compare, compare_text
from analysis.effects import Comparisons
from analysis.frame import read_frame
from analysis.margins import best_arms, retained
from analysis.normalised import costed
from harness.study.errors import UserError
from tests.analysis.conftest import RICH
from tests.analysis.fabricate import EFFECTS, fabricate

CONSTANT, COSINE = "decay.lr.shape=constant", "decay.lr.shape=cosine"


def compared(root: Path) -> Comparisons:
    return Comparisons(read_frame(root))


def test_every_verdict_on_a_margin_occurs_and_follows_its_bound(rich: Path) -> None:
    found = retained(compared(rich))
    assert found["control", "quickstart.average"].verdict == "worse"
    assert found[COSINE, "bpb.docs"].verdict == "not worse"
    assert found["math=0.3", "bpb.docs"].verdict == "not shown"
    for kept in found.values():
        assert kept.bound is not None and kept.difference.estimate is not None
        higher = kept.metric.higher_is_better
        loss = -kept.bound if higher else kept.bound
        assert (kept.bound < kept.difference.estimate) == higher  # the side that loses
        assert (kept.verdict == "not worse") == (loss < kept.margin)


def test_the_bound_holds_for_all_arms_and_margins_together(rich: Path) -> None:
    kept = retained(compared(rich))[COSINE, "bpb.docs"]
    # 4 arms, 2 margins, df 8: one-sided 2.5 % shared out
    assert kept.critical == statistics.dunnett_critical_one_sided(4, 8, 0.025 / 2, 0.5)
    assert kept.critical > statistics.t_critical(8, 0.05)


def test_a_real_difference_can_lie_within_the_margin(tmp_path: Path) -> None:
    comparisons = compared(fabricate(tmp_path, replace(RICH, not_worse={"bpb.docs": 0.06})))
    assert comparisons.to_baseline["math=0.3", "bpb.docs"].verdict == "worse"  # its interval excludes 0
    assert retained(comparisons)["math=0.3", "bpb.docs"].verdict == "not worse"  # and a loss of 0.06


def test_with_one_seed_no_margin_is_judged(tmp_path: Path) -> None:
    comparisons = compared(fabricate(tmp_path, replace(RICH, seeds=("d1",))))
    assert {kept.verdict for kept in retained(comparisons).values()} == {"not estimated"}
    clauses = {m.name: clauses for m, clauses in margin_answers(comparisons.frame, comparisons)}["bpb.docs"]
    assert clauses[0].startswith("Not estimated: ")
    assert best_arms(comparisons, comparisons.frame.by_name["bpb.docs"]) is None


def test_a_diverged_arm_has_no_verdict_on_its_margin(tmp_path: Path) -> None:
    every = frozenset(f"{CONSTANT}/d{i}" for i in (1, 2, 3))
    found = retained(compared(fabricate(tmp_path, replace(RICH, diverged=every))))
    assert found[CONSTANT, "bpb.docs"].verdict == "not estimated"
    assert found[COSINE, "bpb.docs"].verdict == "not worse"


def test_claims_and_the_csv_file_hold_the_margins(rich: Path) -> None:
    claims = json.loads((rich / "report" / "claims.json").read_bytes())["not_worse"]
    assert [(c["arm"], c["metric"], c["verdict"]) for c in claims if c["arm"] == "math=0.3"] == [
        ("math=0.3", "quickstart.average", "not worse"),
        ("math=0.3", "bpb.docs", "not shown"),
    ]
    assert all(c["margin"] > 0 and c["alpha"] == 0.025 and len(c["runs"]) == 6 for c in claims)
    with (rich / "report" / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["margin_verdict"]]
    assert {(r["row"], r["metric"], r["margin_verdict"]) for r in rows} == {
        (c["arm"], c["metric"], c["verdict"]) for c in claims
    }


def test_without_margins_nothing_is_said_of_them(killed: Path) -> None:
    assert json.loads((killed / "report" / "claims.json").read_bytes())["not_worse"] == []
    assert "Margins" not in (killed / "report" / "report.md").read_text("utf-8")


def test_the_best_and_those_that_cannot_be_told_from_it(rich: Path) -> None:
    comparisons = compared(rich)
    assert best_arms(comparisons, comparisons.frame.by_name["bpb.math"]) == {"math=0.3"}
    assert best_arms(comparisons, comparisons.frame.by_name["bpb.docs"]) == {"default", "control", COSINE}


def test_compare_judges_the_margin_of_its_two_arms_alone(rich: Path) -> None:
    found = compare(rich, "control", "default")
    kept = {line["metric"]: line["margin"] for line in found["metrics"]}
    assert kept["bpb.math"] is None
    assert kept["quickstart.average"]["verdict"] == "worse"
    assert kept["bpb.docs"]["verdict"] == "not worse"
    line = next(line for line in found["metrics"] if line["metric"] == "bpb.docs")
    # one comparison: the bound is the end of the plain 95 % interval
    assert kept["bpb.docs"]["bound"] == pytest.approx(line["ci95"][1], rel=1e-5)
    text = compare_text(found)
    assert "bpb.docs: A is not worse than B by more than 0.02 bits/byte" in text.replace("\n", " ")
    assert max(map(len, text.splitlines())) <= 80


def test_an_arm_that_checks_the_study_is_not_compared(tmp_path: Path) -> None:
    root = fabricate(tmp_path, replace(RICH, controls=True))
    with pytest.raises(UserError, match="section Controls"):
        compare(root, "aa", "default")


def test_an_arm_that_checks_the_study_is_in_no_fit_and_no_family(tmp_path: Path) -> None:
    with_check = compared(fabricate(tmp_path / "with", replace(RICH, controls=True)))
    without = compared(fabricate(tmp_path / "without", RICH))
    assert [arm.name for arm in with_check.frame.arms] == [*EFFECTS, "aa"]
    assert with_check.family == without.family == (4, 3)
    for pair, d in without.to_baseline.items():
        assert with_check.to_baseline[pair].adjusted == d.adjusted


def test_costs_are_divided_out_with_the_interval(rich: Path) -> None:
    comparisons = compared(rich)
    by_arm = {found.arm: found for found in costed(comparisons)}
    dear = by_arm["math=0.3"]
    # trunk 204,800 tokens at 0.9 MFLOP, decay 40,960 at 1.8 instead of 0.9
    assert dear.ratio == pytest.approx((204_800 * 0.9 + 40_960 * 1.8) / (245_760 * 0.9))
    assert by_arm["control"].equal and by_arm["control"].ratio == 1.0 and not dear.equal
    d = comparisons.to_baseline["math=0.3", "bpb.math"]
    per = dear.differences["bpb.math"]
    assert d.estimate is not None and d.adjusted is not None and per.interval is not None and dear.ratio is not None
    assert per.estimate == pytest.approx(d.estimate / dear.ratio)
    assert per.interval == pytest.approx((d.adjusted[0] / dear.ratio, d.adjusted[1] / dear.ratio))


def test_nothing_is_divided_where_the_study_does_not_ask(whole: Path) -> None:
    assert costed(compared(whole)) == []
