"""`ablate compare`: two arms over all metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.compare import compare, compare_text
from harness.study.errors import UserError


def test_a_minus_b_is_the_negative_of_b_minus_a(whole: Path) -> None:
    forth, back = compare(whole, "math=0.3", "control"), compare(whole, "control", "math=0.3")
    for a, b in zip(forth["metrics"], back["metrics"], strict=True):
        assert a["difference"] == pytest.approx(-b["difference"])
        assert (a["p"], a["run_se"]) == (b["p"], b["run_se"])


def test_every_metric_is_compared_and_p_is_adjusted_over_them(whole: Path) -> None:
    lines = compare(whole, "decay.lr.shape=cosine", "default")["metrics"]
    assert len(lines) == 7
    assert all(line["p"] <= line["p_holm"] <= 1.0 for line in lines)
    assert min(line["p_holm"] for line in lines) == pytest.approx(
        min(1.0, 7 * min(line["p"] for line in lines)), rel=1e-4
    )


def test_three_seeds_cannot_give_an_exact_p_below_a_quarter(whole: Path) -> None:
    line = next(m for m in compare(whole, "control", "default")["metrics"] if m["metric"] == "bpb.math")
    assert line["sign_flip_p"] == 0.25


def test_right_or_wrong_items_get_an_exact_test_for_each_seed(whole: Path) -> None:
    lines = {line["metric"]: line for line in compare(whole, "math=0.3", "default")["metrics"]}
    tests = lines["quickstart.sums.acc"]["mcnemar"]
    assert [test["seed"] for test in tests] == ["d1", "d2", "d3"]
    assert all(test["only_a"] > test["only_b"] and test["p"] < 0.05 for test in tests)
    assert lines["quickstart.sums.correct_prob"]["mcnemar"] is None


def test_the_text_names_both_arms_and_says_when_runs_are_missing(whole: Path, killed: Path) -> None:
    text = compare_text(compare(killed, "math=0.3", "mixture-as-written"))
    assert "A = math=0.3 (2 of 3, 1 unfinished), B = default (3 of 3)" in text
    assert "least-squares" in text
    assert "least-squares" not in compare_text(compare(whole, "math=0.3", "default"))


def test_one_arm_under_two_names_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match="one arm under two names"):
        compare(whole, "default", "mixture-as-written")
