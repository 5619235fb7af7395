"""The blend is Tijdeman's: less than one row off at every prefix, whatever the shares, cuts and lengths."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from harness.plan.blend import Blend, drawn

shares_of_integers = st.lists(st.integers(1, 10_000), min_size=1, max_size=12).map(
    lambda weights: [Fraction(w, sum(weights)) for w in weights]
)


@given(shares_of_integers, st.integers(1, 600))
def test_every_prefix_is_less_than_one_row_off(shares: list[Fraction], rows: int) -> None:
    blend = Blend(shares)
    for n in range(1, rows + 1):
        blend.next()
        assert all(abs(count - n * share) < 1 for count, share in zip(blend.counts, shares, strict=True))


@given(shares_of_integers, st.integers(0, 300), st.integers(0, 300))
def test_a_cut_changes_nothing(shares: list[Fraction], before: int, after: int) -> None:
    whole = Blend(shares).take(before + after)
    first = Blend(shares)
    head = first.take(before)
    assert head + Blend(shares, first.counts).take(after) == whole


@given(shares_of_integers, st.integers(0, 400))
def test_drawn_counts_what_the_blend_draws(shares: list[Fraction], rows: int) -> None:
    blend = Blend(shares)
    blend.take(rows)
    assert drawn(shares, rows) == blend.counts


def test_a_whole_period_is_exact() -> None:
    shares = [Fraction(60, 100), Fraction(10, 100), Fraction(30, 100)]
    assert drawn(shares, 1_000_000_000_000) == [600_000_000_000, 100_000_000_000, 300_000_000_000]


def test_the_greedy_rule_would_fail_where_tijdeman_holds() -> None:
    """The bound is not vacuous: taking the largest deficit, as Megatron's blend does, exceeds one row here."""
    weights = [Fraction(w, 274) for w in (1, 1, 1, 184, 22, 1, 63, 1)]
    counts = [0] * len(weights)
    worst = Fraction(0)
    for n in range(1, 200):
        deficits = [n * w - c for w, c in zip(weights, counts, strict=True)]
        counts[deficits.index(max(deficits))] += 1
        worst = max(worst, *(abs(n * w - c) for w, c in zip(weights, counts, strict=True)))
    assert worst > 1
