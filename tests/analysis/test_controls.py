"""What a control may conclude: an A/A difference against its own scatter, a number against its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.controls import pooled_difference, verdicts
from analysis.frame import END, Frame, Value, read_frame
from tests.analysis.fabricate import AA, AA_SEEDS, Design, fabricate

SEEDS = ("d1", "d2", "d3")
METRICS = ("bpb.docs", "bpb.math", "quickstart.average")


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    """A folder with an A/A arm of three seeds beside an arm of three others."""
    return read_frame(fabricate(tmp_path_factory.mktemp("controls") / "results", Design(controls=True)))


def with_values(frame: Frame, of: Callable[[str, str, int], float], seeds: int = 3) -> Frame:
    """The frame with `of(arm, metric, index of the seed)` at the ends of the arm and its double."""
    values = dict(frame.values)
    for arm, names in (("default", SEEDS), (AA, AA_SEEDS)):
        for index, seed in enumerate(names):
            for metric in METRICS:
                if index < seeds:
                    values[f"{arm}/{seed}", END, metric] = Value(of(arm, metric, index), None, 1, ())
                else:
                    values.pop((f"{arm}/{seed}", END, metric), None)
    return replace(frame, values=values)


def with_control(frame: Frame, allow: Mapping[str, list[str]] | None = None, **control: Any) -> Frame:
    compare = replace(frame.compare, allow=allow or {})
    controls = [{"name": "published", "kind": "reproduce", "arm": "default", **control}] if control else None
    plan = {**frame.plan, "controls": controls or frame.plan["controls"]}
    return replace(frame, plan=plan, compare=compare)


def shifted(shift: float, metric: str = "bpb.math") -> Callable[[str, str, int], float]:
    return lambda arm, name, index: 1.0 + 0.01 * index + shift * (arm == AA and name == metric)


def test_the_pooled_interval_is_the_one_of_the_two_sample_t_test() -> None:
    x, y = [3.1, 2.9, 3.4], [3.6, 3.5, 3.9, 3.3]
    found = pooled_difference(x, y, alpha=0.02)
    expected = stats.ttest_ind(y, x).confidence_interval(0.98)
    assert found.difference - found.half_width == pytest.approx(expected.low)
    assert found.difference + found.half_width == pytest.approx(expected.high)
    assert found.df == 5


def test_equal_science_with_other_seeds_passes_and_the_sentence_has_the_figures(frame: Frame) -> None:
    (found,) = verdicts(with_values(frame, shifted(0.005)))
    assert (found.passed, found.released) == (True, True)
    assert "bpb.math by +0.00" in found.sentence and "3 against 3 runs" in found.sentence
    assert "98.3 % intervals" in found.sentence  # three metrics share 5 %


def test_a_difference_that_seeds_do_not_explain_fails_and_names_the_metric_alone(frame: Frame) -> None:
    (found,) = verdicts(with_values(frame, shifted(0.2)))
    assert (found.passed, found.released) == (False, False)
    assert "bpb.math by +0.2" in found.sentence
    assert "bpb.docs" not in found.sentence


def test_a_failure_that_is_allowed_by_name_lets_the_other_arms_go_and_stays_a_failure(frame: Frame) -> None:
    (found,) = verdicts(with_control(with_values(frame, shifted(0.2)), allow={AA: ["control-failed"]}))
    assert (found.passed, found.released) == (False, True)
    assert "allowed" in found.sentence


def test_a_sound_study_fails_in_at_most_one_of_twenty_cases_over_all_its_metrics(frame: Frame) -> None:
    """Independent metrics, the worst case of Bonferroni: 1 − (1 − 0.05/3)³ = 4.9 %."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(1500, 2, 3, 3))
    failed = 0
    for one in drawn:
        pairs = ((one[0, metric], one[1, metric]) for metric in range(3))
        failed += not all(pooled_difference(x, y, 0.05 / 3).holds_zero for x, y in pairs)
    assert 0.035 < failed / len(drawn) < 0.065


def test_with_one_run_on_each_side_nothing_is_estimated_and_nothing_is_held(frame: Frame) -> None:
    (found,) = verdicts(with_values(frame, shifted(5.0), seeds=1))
    assert (found.passed, found.released) == (None, True)
    assert "not estimated" in found.sentence


def test_equal_values_without_any_scatter_pass_and_unequal_ones_fail(frame: Frame) -> None:
    same: Callable[[str, str, int], float] = lambda arm, metric, index: 2.5  # noqa: E731
    assert verdicts(with_values(frame, same))[0].passed is True
    other: Callable[[str, str, int], float] = lambda arm, metric, index: 2.5 + 0.001 * (arm == AA)  # noqa: E731
    assert verdicts(with_values(frame, other))[0].passed is False


def test_a_control_is_not_known_while_one_of_its_runs_is_missing(tmp_path: Path) -> None:
    root = fabricate(tmp_path / "results", Design(controls=True, missing=frozenset({"default/d2"})))
    (found,) = verdicts(read_frame(root))
    assert (found.passed, found.released) == (None, False)
    assert "default/d2" in found.sentence


@pytest.mark.parametrize(("tolerance", "passed"), [(0.011, True), (0.009, False)])
def test_a_number_is_reproduced_within_its_tolerance_and_the_measured_one_is_said(
    frame: Frame, tolerance: float, passed: bool
) -> None:
    asked = {"metric": "bpb.math", "at": "end", "value": 1.0, "tolerance": tolerance}
    (found,) = verdicts(with_control(with_values(frame, shifted(0.0)), **asked))  # the mean is 1.01
    assert (found.passed, found.released) == (passed, passed)
    assert "is 1.01 (mean of 3 runs)" in found.sentence
    assert ("off by 0.01" in found.sentence) is not passed


def test_a_number_may_be_asked_of_another_point(frame: Frame) -> None:
    (found,) = verdicts(with_control(frame, metric="bpb.math", at="stable", value=1.0, tolerance=100.0))
    assert found.passed is True and "at `stable`" in found.sentence


def test_without_controls_there_are_no_verdicts(tmp_path: Path) -> None:
    assert verdicts(read_frame(fabricate(tmp_path / "results", Design()))) == []
