"""Each formula against numbers that others published."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg, special, stats

from analysis import statistics

# eval-arena, gsm8k/summary.csv @03068a65, n = 1319: (wins + losses, wins − losses, paired SE, exact p)
EVAL_ARENA = [
    (249, -71, 0.011871240401207035, 8.020884e-06),
    (288, 14, 0.012862914397314, 0.44371221),
    (201, 33, 0.010726534761958, 0.02376118),
    (258, -38, 0.012151829805004, 0.02106904),
]

# Dunnett 1964, two-sided, correlation ½: (arms, df, alpha, critical value as printed)
DUNNETT = [
    (1, 5, 0.05, 2.57),
    (2, 5, 0.05, 3.03),
    (3, 5, 0.05, 3.29),
    (4, 5, 0.05, 3.48),
    (5, 5, 0.05, 3.62),
    (2, 10, 0.05, 2.57),
    (3, 10, 0.05, 2.76),
    (4, 10, 0.05, 2.89),
    (5, 20, 0.05, 2.73),
    (9, 60, 0.05, 2.77),
    (2, math.inf, 0.05, 2.21),
    (8, math.inf, 0.05, 2.65),
    (2, 5, 0.01, 4.63),
    (4, 5, 0.01, 5.22),
    (3, 10, 0.01, 3.74),
]

# Montgomery, Design and Analysis of Experiments, example 4.1: yield of grafts, 4 pressures × 6 batches of resin.
GRAFTS = {
    "8500": [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
    "8700": [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
    "8900": [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
    "9100": [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
}


def grafts() -> dict[tuple[str, str], float]:
    return {(arm, f"s{i}"): value for arm, values in GRAFTS.items() for i, value in enumerate(values)}


def counts(s: int, delta: int) -> tuple[int, int]:
    return (s + delta) // 2, (s - delta) // 2


@pytest.mark.parametrize(("s", "delta", "se", "p"), EVAL_ARENA)
def test_paired_counts_give_eval_arenas_standard_error_and_exact_p(s: int, delta: int, se: float, p: float) -> None:
    wins, losses = counts(s, delta)
    assert statistics.paired_counts_se(wins, losses, 1319) == pytest.approx(se, rel=1e-12)
    assert statistics.mcnemar_exact(wins, losses) == pytest.approx(p, rel=1e-6)


def test_exact_mcnemar_gives_statsmodels_published_p() -> None:
    assert statistics.mcnemar_exact(59, 121) == pytest.approx(4.43444926e-06, rel=1e-8)
    assert statistics.mcnemar_exact(0, 0) == 1.0
    assert [statistics.mcnemar_exact(n, 0) for n in (1, 2, 3, 5)] == [1.0, 0.5, 0.25, 0.0625]


def test_sign_flips_of_students_sleep_data_give_four_patterns_in_1024() -> None:
    extra_sleep = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]
    assert statistics.sign_flip_test(extra_sleep) == 4 / 1024
    with pytest.raises(ValueError, match="at most 20"):
        statistics.sign_flip_test([1.0] * 21)


def test_holm_gives_the_textbook_adjustment_in_the_order_given() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_clustered_means_give_inspect_ais_and_millers_errors() -> None:
    by_cluster = [[float(i) for i in range(20) if i % 4 == c] for c in range(4)]
    assert statistics.ratio_estimate([sum(c) for c in by_cluster], [5.0] * 4).se == pytest.approx(0.645, abs=5e-4)
    pairs = statistics.ratio_estimate([2.0, 0.0, 1.0, 2.0], [2.0] * 4)
    assert (pairs.value, pairs.se) == (pytest.approx(0.625), pytest.approx(0.23936, abs=5e-6))
    naive = statistics.mean_estimate([1, 1, 0, 0, 1, 0, 1, 1])
    assert naive.se == pytest.approx(0.18298, abs=5e-6)


def test_one_document_says_nothing_about_the_variation_between_documents() -> None:
    assert math.isnan(statistics.ratio_estimate([3.0], [2.0]).se)
    assert math.isnan(statistics.mean_estimate([1.0]).se)


def test_ratio_error_agrees_with_a_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(0)
    size = rng.integers(200, 4000, 200).astype(float)
    bits = size * rng.normal(1.8, 0.2, 200)
    found = statistics.ratio_estimate(bits, size)
    picks = rng.integers(0, 200, (4000, 200))
    bootstrap = bits[picks].sum(axis=1) / size[picks].sum(axis=1)
    assert found.value == pytest.approx(bits.sum() / size.sum())
    assert found.se == pytest.approx(float(bootstrap.std()), rel=0.06)


def test_macro_mean_error_does_not_shrink_with_the_size_of_the_largest_task() -> None:
    assert statistics.macro_se([0.3, 0.4]) == pytest.approx(0.25)
    assert statistics.macro_se([0.05, 0.02, 0.0]) == pytest.approx(math.sqrt(0.0025 + 0.0004) / 3)


@pytest.mark.parametrize(("arms", "df", "alpha", "printed"), DUNNETT)
def test_critical_values_are_dunnetts_tables(arms: int, df: float, alpha: float, printed: float) -> None:
    assert statistics.dunnett_critical(arms, df, alpha) == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize("df", [1, 2, 4, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12, 0.001])
def test_quadrature_for_one_arm_is_students_t(df: int, alpha: float) -> None:
    # dunnett_critical returns Student's value itself for one arm, so the integral is asked directly
    nodes = statistics._quadrature(df)
    outside = 1.0 - statistics._inside(statistics.t_critical(df, alpha), 1, 0.5, nodes)
    assert outside == pytest.approx(alpha, rel=1e-3)


def test_critical_value_lies_between_students_and_bonferronis_and_grows_as_correlation_falls() -> None:
    values = [statistics.dunnett_critical(6, 12, 0.05, rho) for rho in (0.5, 0.3, 0.0)]
    assert statistics.t_critical(12) < values[0] < values[1] < values[2] < statistics.t_critical(12, 0.05 / 6)


def test_additive_fit_gives_the_textbooks_error_mean_square() -> None:
    fit = statistics.fit_additive(grafts())
    assert fit.df == 15
    assert fit.residual_variance == pytest.approx(7.33, abs=0.005)
    paired = np.mean(np.array(GRAFTS["9100"]) - np.array(GRAFTS["8500"]))
    assert fit.contrast("9100", "8500") == pytest.approx(paired)
    assert fit.unit_variance("9100", "8500") == pytest.approx(2 / 6)
    assert fit.correlation("8700", "8900", "8500") == pytest.approx(0.5)


def test_two_arms_give_the_paired_t_test() -> None:
    cells = {key: value for key, value in grafts().items() if key[0] in ("8500", "9100")}
    fit = statistics.fit_additive(cells)
    t = fit.contrast("8500", "9100") / math.sqrt(fit.residual_variance * fit.unit_variance("8500", "9100"))
    oracle = stats.ttest_rel(GRAFTS["8500"], GRAFTS["9100"])
    assert (fit.df, t) == (oracle.df, pytest.approx(oracle.statistic))
    assert statistics.t_test(t, 1.0, fit.df) == pytest.approx(oracle.pvalue)


def test_missing_cells_are_fitted_by_least_squares_on_those_that_exist() -> None:
    cells = grafts()
    del cells["9100", "s0"], cells["8700", "s4"]
    fit = statistics.fit_additive(cells)
    assert fit.df == len(cells) - 4 - 6 + 1
    # the same model written down differently: treatment coding, solved by QR
    design = np.array(
        [[1.0, *(a == x for x in ("8700", "8900", "9100")), *(s == f"s{i}" for i in range(1, 6))] for a, s in cells]
    )
    solution, _, _, _ = linalg.lstsq(design, np.array(list(cells.values())), lapack_driver="gelsy")
    error = np.array(list(cells.values())) - design @ solution
    assert fit.contrast("9100", "8500") == pytest.approx(solution[3])
    assert fit.residual_variance == pytest.approx(float(error @ error) / fit.df)
    assert fit.unit_variance("9100", "8500") == pytest.approx(np.linalg.inv(design.T @ design)[3, 3])


def test_arms_without_a_common_seed_in_reach_are_not_estimable() -> None:
    fit = statistics.fit_additive({("a", "s1"): 1.0, ("b", "s1"): 2.0, ("c", "s2"): 3.0})
    assert fit.estimable("a", "b")
    assert not fit.estimable("a", "c")


def test_variation_that_is_only_rounding_is_no_variation() -> None:
    cells = {(a, s): 0.1 + 0.2 * i + 0.3 * j for i, a in enumerate("abc") for j, s in enumerate("xyz")}
    fit = statistics.fit_additive(cells)
    assert fit.df == 4
    assert not fit.estimable_error
    assert statistics.fit_additive({**cells, ("a", "x"): 0.11}).estimable_error


def test_one_seed_leaves_no_degrees_of_freedom() -> None:
    fit = statistics.fit_additive({("a", "s"): 1.0, ("b", "s"): 2.0, ("c", "s"): 4.0})
    assert fit.df == 0
    assert not fit.estimable_error


def test_minimal_detectable_effect_gives_millers_sample_sizes() -> None:
    def effect(n: int, variance: float) -> float:
        return statistics.minimal_detectable_effect(math.sqrt(variance / n), math.inf, statistics.t_critical(math.inf))

    assert effect(969, 1 / 9) <= 0.03 < effect(968, 1 / 9)
    assert effect(198, 1 / 9 + 2 / 6) == pytest.approx(0.1327, abs=5e-5)
    assert effect(198, 1 / 9 + 2 / 60) == pytest.approx(0.0757, abs=5e-5)


def test_minimal_detectable_effect_gives_cohens_paired_sample_size() -> None:
    # a paired t-test sees half a standard deviation with 80 % power from 34 pairs on (Cohen 1988; G*Power)
    def effect(n: int) -> float:
        return statistics.minimal_detectable_effect(1 / math.sqrt(n), n - 1, statistics.t_critical(n - 1))

    assert effect(34) < 0.5 < effect(33)


def test_an_effect_as_large_as_the_mde_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    df, critical = 6, 3.4
    effect = statistics.minimal_detectable_effect(1.0, df, critical)
    t = (rng.normal(effect, 1.0, 40_000)) / np.sqrt(rng.chisquare(df, 40_000) / df)
    assert np.mean(np.abs(t) > critical) == pytest.approx(0.8, abs=0.008)


def test_items_tell_two_models_apart_when_paired_that_look_alike_unpaired() -> None:
    # 100 items; both models get 60 right alike, the second nine more and one fewer
    first, second = np.r_[np.ones(61), np.zeros(39)], np.r_[np.zeros(1), np.ones(69), np.zeros(30)]
    wins, losses = int((second > first).sum()), int((second < first).sum())
    unpaired = (second.mean() - first.mean()) / math.hypot(
        statistics.mean_estimate(first).se, statistics.mean_estimate(second).se
    )
    assert statistics.mcnemar_exact(wins, losses) < 0.05
    assert abs(unpaired) < 1.96


def simulated_errors(rng: np.random.Generator, missing: int, adjusted: bool, rounds: int) -> float:
    """Share of null studies (4 arms and a baseline × 3 seeds × 2 metrics) that mark any arm on any metric."""
    arms, seeds = [f"a{i}" for i in range(5)], ["x", "y", "z"]
    false = 0
    for _ in range(rounds):
        marked = False
        for _ in range(2):
            by_seed = dict(zip(seeds, rng.normal(0, 3, 3), strict=True))
            cells = {(a, s): float(rng.normal(by_seed[s], 1.0)) for a in arms for s in seeds}
            for cell in list(cells)[4 : 4 + 3 * missing : 3]:  # one seed of each of the first arms after the baseline
                del cells[cell]
            fit = statistics.fit_additive(cells)
            rho = min(fit.correlation(a, b, "a0") for a in arms[1:] for b in arms[1:] if a != b)
            critical = (
                statistics.dunnett_critical(4, fit.df, 0.025, round(min(0.5, rho), 9))
                if adjusted
                else statistics.t_critical(fit.df)
            )
            for arm in arms[1:]:
                se = math.sqrt(fit.residual_variance * fit.unit_variance(arm, "a0"))
                marked |= abs(fit.contrast(arm, "a0")) > critical * se
        false += marked
    return false / rounds


@pytest.mark.parametrize("missing", [0, 2])
def test_under_the_null_one_study_in_twenty_marks_anything(missing: int) -> None:
    rounds = 1500
    rate = simulated_errors(np.random.default_rng(20), missing, adjusted=True, rounds=rounds)
    monte_carlo = math.sqrt(0.05 * 0.95 / rounds)
    assert rate <= 0.05 + 3 * monte_carlo
    assert rate >= 0.05 - 4 * monte_carlo  # and the intervals are no wider than they must be


def test_without_the_adjustment_the_null_is_marked_far_too_often() -> None:
    assert simulated_errors(np.random.default_rng(21), 0, adjusted=False, rounds=300) > 0.15


@pytest.mark.parametrize(
    ("df", "row"),  # Dunnett 1955, table 1a: one-sided, joint confidence 95 %, 1 to 9 treatments
    [
        (5, [2.02, 2.44, 2.68, 2.85, 2.98, 3.08, 3.16, 3.24, 3.30]),
        (10, [1.81, 2.15, 2.34, 2.47, 2.56, 2.64, 2.70, 2.76, 2.81]),
        (20, [1.72, 2.03, 2.19, 2.30, 2.39, 2.46, 2.51, 2.56, 2.60]),
        (math.inf, [1.64, 1.92, 2.06, 2.16, 2.23, 2.29, 2.34, 2.38, 2.42]),
    ],
)
def test_one_sided_dunnett_is_dunnetts_table(df: float, row: list[float]) -> None:
    assert [round(statistics.dunnett_critical_one_sided(k, df), 2) for k in range(1, 10)] == row


def test_one_sided_dunnett_without_correlation_is_that_of_independent_maxima() -> None:
    # P(max of 3 independent normals ≤ c) = Φ(c)³ = 0.95
    c = statistics.dunnett_critical_one_sided(3, math.inf, 0.05, 0.0)
    assert special.ndtr(c) ** 3 == pytest.approx(0.95, abs=1e-6)


@pytest.mark.parametrize(
    ("margin", "within"), [(2.46, True), (2.459, None), (1.58, None), (0.701, None), (0.70, False), (0.1, False)]
)
def test_a_margin_is_judged_by_the_published_interval(margin: float, within: bool | None) -> None:
    # Student's sleep data, drug 1 − drug 2: mean −1.58, 95 % interval −2.4598858 to −0.7001142 (R's t.test, paired)
    differences = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4]
    estimate = statistics.mean_estimate(differences)
    critical = statistics.t_critical(9)
    assert estimate.value - critical * estimate.se == pytest.approx(-2.4598858, abs=1e-7)
    assert statistics.within_margin(estimate.value, estimate.se, critical, margin) is within


def test_a_loss_that_is_real_can_still_be_within_the_margin() -> None:
    # −0.3 ± 0.2 excludes 0, and loses less than 0.6
    assert statistics.within_margin(-0.3, 0.1, 2.0, 0.6) is True
    assert statistics.within_margin(-0.3, 0.1, 2.0, 0.5) is None  # at the margin itself nothing is shown


def test_who_may_be_best_follows_the_distance_to_the_best_of_the_others() -> None:
    # by hand: the best is 10; with critical·se = 1.5 those above 8.5 may be the best, whoever stands between
    gains = [10.0, 8.6, 8.5, 9.2, 3.0]
    errors = np.full((5, 5), 0.5)
    assert statistics.among_best(gains, errors, 3.0) == [True, True, False, True, False]
    errors[2, :] = errors[:, 2] = 2.0  # fewer runs: less is known of it, so it cannot be ruled out
    assert statistics.among_best(gains, errors, 3.0) == [True, True, True, True, False]


def test_the_set_of_best_holds_the_best_as_often_as_it_promises() -> None:
    rng = np.random.default_rng(5)
    arms, seeds, trials = 4, 4, 4000
    df = (arms - 1) * (seeds - 1)
    critical = statistics.dunnett_critical_one_sided(arms - 1, df, 0.05)
    held = 0
    for _ in range(trials):  # all arms equal: the hardest case, in which any of them is "the" best
        y = rng.normal(size=(arms, seeds))
        residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
        se = math.sqrt(2.0 * float((residual**2).sum()) / df / seeds)
        held += statistics.among_best(y.mean(1), np.full((arms, arms), se), critical)[0]
    assert held / trials == pytest.approx(0.95, abs=3.5 * math.sqrt(0.95 * 0.05 / trials))


def test_the_least_correlation_is_the_smallest_of_all_pairs() -> None:
    cells = {(arm, seed): 0.0 for arm in "abcd" for seed in "123" if (arm, seed) not in {("b", "1"), ("c", "2")}}
    fit = statistics.fit_additive(cells)
    pairs = [fit.correlation(x, y, "a") for x in "bcd" for y in "bcd" if x != y]
    assert fit.least_correlation(["b", "c", "d"], "a") == pytest.approx(min(pairs))
    assert fit.least_correlation(["b"], "a") == 1.0


@pytest.mark.parametrize("missing", [set(), {("8500", "s1"), ("8900", "s4"), ("9100", "s4")}])
def test_an_arms_own_spread_is_what_the_residual_loses_without_it(missing: set[tuple[str, str]]) -> None:
    cells = {place: value for place, value in grafts().items() if place not in missing}
    fit = statistics.fit_additive(cells)
    for arm in GRAFTS:
        rest = statistics.fit_additive({place: value for place, value in cells.items() if place[0] != arm})
        squares, df = fit.residual_variance * fit.df - rest.residual_variance * rest.df, fit.df - rest.df
        spread = fit.own_spread(arm)
        assert spread is not None
        assert spread.own == pytest.approx(math.sqrt(squares / df))
        assert spread.others == pytest.approx(math.sqrt(rest.residual_variance))
        assert spread.p == pytest.approx(stats.f.sf(squares / df / rest.residual_variance, df, rest.df))


def test_equal_arms_are_said_to_stray_in_one_study_of_twenty_and_an_arm_with_thrice_the_sd_in_half() -> None:
    rng = np.random.default_rng(0)
    places = [(arm, seed) for arm in "abcdefg" for seed in ("s1", "s2", "s3")]
    found = {1.0: 0, 3.0: 0}
    for sd in found:
        for _ in range(600):
            noise = rng.normal(0.0, 1.0, len(places))
            fit = statistics.fit_additive(
                {place: 5.0 + e * (sd if place[0] == "g" else 1.0) for place, e in zip(places, noise, strict=True)}
            )
            spreads = [fit.own_spread(arm) for arm in fit.arms]
            found[sd] += any(spread is not None and spread.p * 7 < 0.05 for spread in spreads)
    assert 0.03 < found[1.0] / 600 < 0.07
    assert found[3.0] / 600 > 0.35


def test_of_two_arms_neither_is_said_to_stray_for_their_spreads_cannot_be_told_apart() -> None:
    cells = {place: value for place, value in grafts().items() if place[0] in ("8500", "9100")}
    assert statistics.fit_additive(cells).own_spread("8500") is None
