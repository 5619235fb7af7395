from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study.units import (
    Margin,
    TokenCount,
    UnitError,
    parse_duration,
    parse_every,
    parse_margin,
    parse_rate,
    parse_share,
    parse_size,
    parse_start,
    parse_tokens,
    whole_batches,
    write_share,
)

counts = st.integers(0, 10**15)
batches = st.integers(1, 2**24)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        (512, 512),
        ("10B", 10**10),
        ("0.26M", 260_000),
        ("1.5k", 1500),
        ("2T", 2 * 10**12),
        ("2^21", 2**21),
        ("4Ki", 4096),
    ],
)
def test_token_counts_are_decimal_unless_the_unit_is_binary(written: object, tokens: int) -> None:
    assert parse_tokens(written) == TokenCount(Fraction(tokens), False, str(written))


@pytest.mark.parametrize(
    "written", ["10b", "1e9", "1,000", "-5", "10 B", "~", "2^", "3^4", "1.2345k", True, None, 1e9, [1]]
)
def test_other_token_counts_are_refused(written: object) -> None:
    with pytest.raises(UnitError):
        parse_tokens(written)


@pytest.mark.parametrize(
    ("written", "length"), [(2048, 2048), ("2^11", 2048), ("2Ki", 2048), ("1Mi", 2**20), ("96", 96)]
)
def test_lengths_are_whole(written: object, length: int) -> None:
    assert parse_size(written) == length


@pytest.mark.parametrize(
    ("written", "readings"), [("32k", "32000 or 32768"), ("1M", "1000000 or 1048576"), ("0.5M", "500000 or 524288")]
)
def test_a_length_in_k_or_m_is_refused_with_both_readings(written: str, readings: str) -> None:
    with pytest.raises(UnitError, match=readings):
        parse_size(written)


@pytest.mark.parametrize("written", ["~2048", 0, -1, 2048.0, True, None, "1.5Ki1", "0"])
def test_other_lengths_are_refused(written: object) -> None:
    with pytest.raises(UnitError):
        parse_size(written)


@given(counts, batches)
def test_a_rounded_count_is_the_nearest_whole_batch(count: int, batch: int) -> None:
    tokens = whole_batches(parse_tokens(f"~{count}"), batch)
    assert tokens % batch == 0
    assert 2 * abs(tokens - count) <= batch


@given(counts, batches)
def test_an_exact_count_is_kept_or_refused(count: int, batch: int) -> None:
    exact = parse_tokens(count)
    if count % batch == 0:
        assert whole_batches(exact, batch) == count
    else:
        with pytest.raises(UnitError, match="whole number of batches"):
            whole_batches(exact, batch)


@given(st.decimals(0, 1, places=6))
def test_a_decimal_share_is_read_exactly_and_written_back(share: object) -> None:
    written = float(str(share))
    assert parse_share(written) == Fraction(str(share))
    assert write_share(parse_share(written)) == written


@given(st.integers(0, 50), st.integers(1, 50))
def test_any_share_that_is_written_reads_the_same(numerator: int, denominator: int) -> None:
    share = Fraction(min(numerator, denominator), denominator)
    assert parse_share(write_share(share)) == share


@pytest.mark.parametrize("written", [1.01, -0.1, "0.3", "30%", "1/0", True, None, float("nan")])
def test_other_shares_are_refused(written: object) -> None:
    with pytest.raises(UnitError):
        parse_share(written)


def test_a_multiple_of_the_peak_is_the_rate_that_one_would_write() -> None:
    assert 0.1 * 0.006 != 0.0006, "the product of doubles is another number"
    assert parse_rate("0.1x").resolve(0.006) == 0.0006
    assert parse_rate(3e-4).resolve(0.006) == 3e-4


def test_only_a_start_may_be_the_base() -> None:
    assert parse_start("base") == "base"
    with pytest.raises(UnitError):
        parse_rate("base")


def test_an_interval_is_read_from_every() -> None:
    every = parse_every("every 1B")
    assert every is not None and every.value == 10**9
    assert parse_every("decay") is None


@pytest.mark.parametrize(
    ("written", "value", "points"),
    [("0.5pp", 0.005, True), (".5 pp", 0.005, True), (0.01, 0.01, False), (1, 1.0, False)],
)
def test_a_margin_in_percentage_points_is_one_of_a_share(written: object, value: float, points: bool) -> None:
    assert parse_margin(written) == Margin(value, points)


@pytest.mark.parametrize("written", [0, "0pp", -1, "-1pp", "0.5%", "pp", True, None, float("inf"), [1]])
def test_what_is_no_margin_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(UnitError, match=r"0\.5pp"):
        parse_margin(written)


NINES = "9" * 5000


@pytest.mark.parametrize(
    ("parse", "written"),
    [
        (parse_every, "every ²"),
        (parse_every, f"every {NINES}"),
        (parse_every, "every ٣"),
        (parse_tokens, NINES),
        (parse_tokens, "2^63"),
        (parse_tokens, 2**63),
        (parse_tokens, "10000000T"),
        (parse_size, "2^63"),
        (parse_size, 2**63),
        (parse_size, f"{NINES}Gi"),
        (parse_rate, "1e-999999999x"),
        (parse_rate, "1e99x"),
        (parse_rate, f"{NINES}x"),
        (parse_rate, 1e300),
        (parse_share, f"1/{NINES}"),
        (parse_margin, f"{NINES}pp"),
        (parse_duration, f"{NINES}d"),
    ],
)
def test_numbers_that_nothing_could_hold_are_refused_in_few_words(parse: Callable[[Any], Any], written: Any) -> None:
    with pytest.raises(UnitError) as caught:
        parse(written)
    assert "expected" in str(caught.value)
    assert len(str(caught.value)) < 300 or parse in (parse_tokens, parse_every)
