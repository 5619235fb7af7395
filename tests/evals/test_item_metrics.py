"""Per-item metrics and standard errors, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from harness.evals.item_metrics import (
    bits_per_byte,
    correct_probability,
    mean_metric,
    ratio_metric,
)


def test_correct_probability_is_the_share_of_the_right_choice_among_the_choices() -> None:
    lls = [math.log(0.02), math.log(0.06), math.log(0.01), math.log(0.01)]
    assert correct_probability(lls, {1}) == pytest.approx(0.6)
    assert correct_probability(lls, {0, 2}) == pytest.approx(0.3)


def test_correct_probability_survives_very_small_likelihoods() -> None:
    assert correct_probability([-5000.0, -5000.0 - math.log(3)], {0}) == pytest.approx(0.75)


def test_a_label_out_of_range_has_no_probability_and_is_left_out_of_the_mean() -> None:
    assert math.isnan(correct_probability([-1.0, -2.0], set()))
    metric = mean_metric([1.0, math.nan, 0.0], higher_is_better=True)
    assert (metric.value, metric.n) == (0.5, 2)


def test_bits_per_byte_of_a_fair_byte_is_eight() -> None:
    assert bits_per_byte(3 * math.log(256), 3) == pytest.approx(8.0)


def test_the_standard_error_of_a_mean_divides_by_n_minus_one() -> None:
    metric = mean_metric([1.0, 0.0, 0.0, 1.0], higher_is_better=True)
    assert metric.stderr == pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))
    assert mean_metric([1.0], higher_is_better=True).stderr is None


def test_a_ratio_with_equal_denominators_has_the_standard_error_of_a_mean() -> None:
    values = [2.0, 4.0, 9.0, 1.0]
    ratio = ratio_metric(values, [5.0] * 4, higher_is_better=False)
    mean = mean_metric([value / 5 for value in values], higher_is_better=False)
    assert ratio.value == pytest.approx(mean.value)
    assert ratio.stderr == pytest.approx(mean.stderr)


def test_the_standard_error_of_a_ratio_is_the_delta_method_s() -> None:
    metric = ratio_metric([10.0, 30.0, 20.0], [5.0, 10.0, 15.0], higher_is_better=False, scale=2.0)
    # R = 60 / 30 = 2; residuals 0, 10, -10; SE = sqrt(3 / 2 * 200) / 30
    assert metric.value == pytest.approx(4.0)
    assert metric.stderr == pytest.approx(2 * math.sqrt(300) / 30)


def test_what_is_not_finite_is_missing_and_never_zero() -> None:
    assert mean_metric([math.inf, 1.0], higher_is_better=True).value is None
    assert mean_metric([], higher_is_better=True).value is None
    assert ratio_metric([1.0], [0.0], higher_is_better=False).value is None
