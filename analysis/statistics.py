"""Small pure functions, each with its formula and where it comes from.

Two kinds of error are kept apart everywhere. *Run-level*: would another run (another seed) change the answer; the unit
is a run's mean, and the error comes from the arm × seed residual. *Item-level*: would other questions or documents
change it; the unit is an item. The tests carry published numbers for each formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, special  # not scipy.stats, which takes twice as long to import

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

# A residual this small against the values is rounding, not variation between runs.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error, over n units. `se` is NaN when n < 2."""

    value: float
    se: float
    n: int


def mean_estimate(values: Sequence[float] | Array) -> Estimate:
    """Mean and s/√n, s with n − 1 (lm-eval's and scipy.stats.sem's convention)."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    se = float(np.std(x, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(np.mean(x)), se, n)


def paired_counts_se(wins: int, losses: int, n: int) -> float:
    """Standard error of the difference of two accuracies on the same n items: √((s/n − (δ/n)²)/n).

    s = wins + losses, δ = wins − losses: the items that only one of the two got right. Population variance, as in
    Wang, "Measuring all the noises", 2512.21326 (eval-arena).
    """
    s, delta = wins + losses, wins - losses
    return math.sqrt((s / n - (delta / n) ** 2) / n)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p of McNemar's test: 2·P(Bin(wins + losses, ½) ≤ min(wins, losses)), at most 1."""
    n = wins + losses
    if n == 0:
        return 1.0
    return min(1.0, 2.0 * float(special.bdtr(min(wins, losses), n, 0.5)))


def sign_flip_test(differences: Sequence[float] | Array) -> float:
    """Exact two-sided p of the sign-flip permutation test: the share of the 2ⁿ sign patterns whose |mean| is at
    least the observed one (Fisher 1935; scipy.stats.permutation_test with permutation_type="samples").

    Raises ValueError beyond 20 differences, where the patterns are too many to list.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) > 20:
        raise ValueError(f"exact for at most 20 differences, got {len(d)}")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(float(d.sum()))
    tolerance = 1e-12 * max(1.0, float(np.abs(d).sum()))
    return float(np.mean(np.abs(sums) >= observed - tolerance))


def t_test(estimate: float, se: float, df: float) -> float:
    """Two-sided p of an estimate with a Student-t error."""
    return 2.0 * float(special.stdtr(df, -abs(estimate) / se))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: max over smaller p of (m − rank)·p, at most 1 (Holm 1979)."""
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def ratio_estimate(numerator: Sequence[float] | Array, denominator: Sequence[float] | Array) -> Estimate:
    """Σa/Σb over documents with the delta method's error: √(n/(n − 1)·Σ(aᵢ − r·bᵢ)²)/Σb.

    A document is a cluster: everything in it enters through its sums. With a = nats/ln 2 and b = bytes the value is
    bits per byte; with a = the difference of two models' nats on the same documents it is the paired difference,
    because both have the same bytes (Cochran, Sampling Techniques, 3rd ed., eq. 6.13). For a mean over clustered
    items (a: sum of a cluster's items, b: their number) it is Miller's clustered error, 2411.00640, eq. 4, with the
    finite correction of inspect_ai. NaN for one document: nothing is known of the variation between documents.
    """
    a = np.asarray(numerator, dtype=np.float64)
    b = np.asarray(denominator, dtype=np.float64)
    n, total = len(a), float(b.sum())
    ratio = float(a.sum()) / total
    if n < 2:
        return Estimate(ratio, math.nan, n)
    residual = a - ratio * b
    return Estimate(ratio, math.sqrt(n / (n - 1) * float(np.sum(residual**2))) / total, n)


def macro_se(standard_errors: Sequence[float]) -> float:
    """Standard error of an unweighted mean of k tasks, the tasks being fixed: √Σ SEᵢ² / k."""
    return math.sqrt(sum(se * se for se in standard_errors)) / len(standard_errors)


@dataclass(frozen=True, slots=True)
class Spread:
    """SD of an arm's runs about arm + seed, that of all other arms', and the one-sided p of their being equal."""

    own: float
    others: float
    p: float


@dataclass(frozen=True)
class AdditiveFit:
    """Least squares of y = arm + seed over the cells that exist.

    residual_variance: mean square of the residual, NaN when df is 0. seed blocks take out what a seed does to every
    arm alike; what is left is what a claim about an arm must stand against.
    """

    arms: tuple[str, ...]
    seeds: tuple[str, ...]
    n: int
    df: int
    residual_variance: float
    scale: float  # largest |y|: what "zero" is measured against
    coefficients: Array  # [arms + seeds], minimum norm
    information: Array  # pseudo-inverse of X'X, [arms + seeds] squared
    row_space: Array  # projector on what the cells can tell, [arms + seeds] squared
    design: Array  # X, [cells, arms + seeds]
    residuals: Array  # [cells]

    @property
    def estimable_error(self) -> bool:
        """Whether the residual says anything: there are degrees of freedom and it is more than rounding."""
        return self.df > 0 and math.sqrt(self.residual_variance) > ROUNDING * self.scale

    def estimable(self, arm: str, reference: str) -> bool:
        """Whether the cells connect the two arms, directly or through seeds of others."""
        vector = self._vector(arm, reference)
        return bool(np.allclose(self.row_space @ vector, vector, atol=1e-8))

    def contrast(self, arm: str, reference: str) -> float:
        """The least-squares difference arm − reference; in a complete table the mean of the paired differences."""
        return float(self._vector(arm, reference) @ self.coefficients)

    def unit_variance(self, arm: str, reference: str) -> float:
        """Variance of the contrast in units of the residual variance; 2/seeds in a complete table."""
        vector = self._vector(arm, reference)
        return float(vector @ self.information @ vector)

    def correlation(self, first: str, second: str, reference: str) -> float:
        """Correlation of two arms' contrasts with one reference; ½ in a complete table."""
        a, b = self._vector(first, reference), self._vector(second, reference)
        scale = math.sqrt(float(a @ self.information @ a) * float(b @ self.information @ b))
        return float(a @ self.information @ b) / scale

    def least_correlation(self, arms: Sequence[str], reference: str) -> float:
        """The smallest `correlation` between any two of `arms`; 1 when there are no two."""
        if len(arms) < 2:
            return 1.0
        vectors = np.array([self._vector(arm, reference) for arm in arms])
        covariance = vectors @ self.information @ vectors.T
        spread = np.sqrt(np.diag(covariance))
        return float(np.min(covariance / np.outer(spread, spread)))

    def own_spread(self, arm: str) -> Spread | None:
        """How far the arm's runs stray beside the other arms'; None where one of the two cannot be told.

        Without the arm's n rows X_a the residual sum of squares falls by r'(I − H)⁺r, r being their residuals and
        H = X_a (X'X)⁺ X_a' their leverages; what falls and what is left are independent, so with equal variances
        the quotient of their mean squares is F (Shukla 1972, Heredity 29:237, for a complete table).
        """
        rows = self.design[self.design[:, self.arms.index(arm)] > 0.0]
        residuals = self.residuals[self.design[:, self.arms.index(arm)] > 0.0]
        free, axes = np.linalg.eigh(np.eye(len(rows)) - rows @ self.information @ rows.T)
        kept = free > 1e-8
        squares = float(np.sum((axes.T @ residuals)[kept] ** 2 / free[kept]))
        own_df, rest_df = int(kept.sum()), self.df - int(kept.sum())
        if own_df < 1 or rest_df < 1 or not self.estimable_error:
            return None
        rest = max(self.residual_variance * self.df - squares, (ROUNDING * self.scale) ** 2)
        p = float(special.fdtrc(own_df, rest_df, squares / own_df / (rest / rest_df)))
        return Spread(math.sqrt(squares / own_df), math.sqrt(rest / rest_df), p)

    def _vector(self, arm: str, reference: str) -> Array:
        vector = np.zeros(len(self.arms) + len(self.seeds))
        vector[self.arms.index(arm)] += 1.0
        vector[self.arms.index(reference)] -= 1.0
        return vector


def fit_additive(cells: Mapping[tuple[str, str], float]) -> AdditiveFit:
    """Fit arm + seed to run means, `cells[arm, seed]`; missing cells are simply not there.

    df = N − rank, which is N − arms − seeds + 1 when the cells hang together and (arms − 1)(seeds − 1) when none is
    missing: the randomized complete block design (Montgomery, Design and Analysis of Experiments, ch. 4.1).
    """
    arms = tuple(dict.fromkeys(arm for arm, _ in cells))
    seeds = tuple(sorted({seed for _, seed in cells}))
    design = np.zeros((len(cells), len(arms) + len(seeds)))
    y = np.fromiter(cells.values(), dtype=np.float64, count=len(cells))
    for row, (arm, seed) in enumerate(cells):
        design[row, arms.index(arm)] = 1.0
        design[row, len(arms) + seeds.index(seed)] = 1.0
    normal = design.T @ design
    information = np.asarray(np.linalg.pinv(normal, rcond=1e-10, hermitian=True), dtype=np.float64)
    coefficients = information @ (design.T @ y)
    df = len(cells) - int(np.linalg.matrix_rank(design))
    residual = y - design @ coefficients
    variance = float(residual @ residual) / df if df > 0 else math.nan
    scale = float(np.max(np.abs(y))) if len(y) else 0.0
    row_space = information @ normal
    return AdditiveFit(
        arms, seeds, len(cells), df, variance, scale, coefficients, information, row_space, design, residual
    )


def t_critical(df: float, alpha: float = 0.05) -> float:
    """The two-sided critical value of Student's t."""
    p = 1.0 - alpha / 2.0
    return float(special.ndtri(p) if math.isinf(df) else special.stdtrit(df, p))


@lru_cache(maxsize=256)
def dunnett_critical(arms: int, df: float, alpha: float = 0.05, correlation: float = 0.5) -> float:
    """c with P(max |Tᵢ| ≤ c) = 1 − alpha over `arms` comparisons with one reference (Dunnett 1955, 1964).

    T is the multivariate t with equal correlations ρ (½ when all arms have as many runs as the reference). With
    Tᵢ = (√ρ·Z + √(1−ρ)·Zᵢ)/S, S² = χ²_df/df, the probability is a double integral over Z and S, which fixed
    Gauss-Hermite and Gauss-Legendre nodes evaluate: no random numbers, the same digits on every machine.
    """
    if arms < 1 or df <= 0 or not 0.0 <= correlation < 1.0 or not 0.0 < alpha < 1.0:
        raise ValueError(f"no critical value for {arms} arms, df {df}, alpha {alpha}, correlation {correlation}")
    if arms == 1:
        return t_critical(df, alpha)
    nodes = _quadrature(df)
    upper = t_critical(df, alpha / arms) * 1.0001  # Bonferroni is never below it
    lower = t_critical(df, alpha) * 0.9999
    return float(
        optimize.brentq(
            lambda c: _inside(c, arms, correlation, nodes) - (1.0 - alpha), lower, upper, xtol=1e-10, rtol=1e-12
        )
    )


@lru_cache(maxsize=256)
def dunnett_critical_one_sided(arms: int, df: float, alpha: float = 0.05, correlation: float = 0.5) -> float:
    """c with P(max Tᵢ ≤ c) = 1 − alpha over `arms` comparisons with one reference (Dunnett 1955, table 1).

    The same double integral as `dunnett_critical`, with one tail.
    """
    if arms < 1 or df <= 0 or not 0.0 <= correlation < 1.0 or not 0.0 < alpha < 0.5:
        raise ValueError(f"no critical value for {arms} arms, df {df}, alpha {alpha}, correlation {correlation}")
    if arms == 1:
        return t_critical(df, 2.0 * alpha)
    nodes = _quadrature(df)
    upper = t_critical(df, 2.0 * alpha / arms) * 1.0001  # Bonferroni is never below it
    lower = t_critical(df, 2.0 * alpha) * 0.9999

    def excess(c: float) -> float:
        return _below(c, arms, correlation, nodes) - (1.0 - alpha)

    return float(optimize.brentq(excess, lower, upper, xtol=1e-10, rtol=1e-12))


def within_margin(gain: float, se: float, critical: float, margin: float) -> bool | None:
    """Whether an arm loses less than `margin`: True, False (it loses more), or None when neither is shown.

    gain: its difference to the reference, counted so that more is better. True when the lower confidence bound
    gain − critical·se lies above −margin (the confidence-interval form of the non-inferiority test: ICH E9, 3.3.2;
    Piaggio et al., CONSORT 2012, JAMA 308:2594, figure 1), False when the upper bound lies below it.
    """
    if gain - critical * se > -margin:
        return True
    return False if gain + critical * se < -margin else None


def among_best(gains: Sequence[float] | Array, errors: Array, critical: float) -> list[bool]:
    """Which treatments may be the best: those with gainᵢ − gainⱼ > −critical·seᵢⱼ for every other j.

    The set holds the truly best one with the probability for which `critical` (one-sided Dunnett over the others) is
    made (Gupta 1965, Technometrics 7:225; Hsu 1984, Annals of Statistics 12:1136: multiple comparisons with the best).
    errors: standard errors of the pairwise differences, [n, n].
    """
    g = np.asarray(gains, dtype=np.float64)
    behind = (g[None, :] - g[:, None]) >= critical * errors
    np.fill_diagonal(behind, False)
    return [not bool(row.any()) for row in behind]


@lru_cache(maxsize=64)
def _quadrature(df: float) -> tuple[Array, Array, Array, Array]:
    """Nodes and weights: standard normal z, and s = √(χ²_df/df) through its quantile function."""
    z, z_weight = np.polynomial.hermite_e.hermegauss(80)
    if math.isinf(df):
        return z, z_weight / z_weight.sum(), np.ones(1), np.ones(1)
    u, u_weight = np.polynomial.legendre.leggauss(400)
    s = np.sqrt(2.0 * special.gammaincinv(df / 2.0, (u + 1.0) / 2.0) / df)
    return z, z_weight / z_weight.sum(), s, u_weight / 2.0


def _inside(c: float, arms: int, rho: float, nodes: tuple[Array, Array, Array, Array]) -> float:
    z, z_weight, s, s_weight = nodes
    shift = math.sqrt(rho) * z[None, :] / math.sqrt(1.0 - rho)
    half = c * s[:, None] / math.sqrt(1.0 - rho)
    within = special.ndtr(shift + half) - special.ndtr(shift - half)
    return float(s_weight @ within**arms @ z_weight)


def _below(c: float, arms: int, rho: float, nodes: tuple[Array, Array, Array, Array]) -> float:
    z, z_weight, s, s_weight = nodes
    within = special.ndtr((c * s[:, None] + math.sqrt(rho) * z[None, :]) / math.sqrt(1.0 - rho))
    return float(s_weight @ within**arms @ z_weight)


def minimal_detectable_effect(se: float, df: float, critical: float, power: float = 0.8) -> float:
    """The true difference that an interval of half-width critical·se would exclude from 0 with this probability.

    Solves P(|T'| > critical) = power for the non-centrality δ/se of the non-central t with df degrees of freedom
    (Cohen 1988; statsmodels' TTestPower), the probability given S being that of a normal. For df → ∞ it is
    (z_{α/2} + z_β)·se: Miller, 2411.00640, eq. 9.
    """
    _, _, s, weight = _quadrature(df)

    def excess(effect: float) -> float:
        beyond = special.ndtr(effect - critical * s) + special.ndtr(-effect - critical * s)
        return float(weight @ beyond) - power

    upper = critical + 10.0
    while excess(upper) < 0.0:
        upper *= 2.0
    return float(optimize.brentq(excess, 0.0, upper, xtol=1e-9)) * se
