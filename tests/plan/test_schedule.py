"""Rates agree with the closed forms, begin and end where declared, and are the same wherever training is cut."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan.schedule import rate, schedule
from harness.study.errors import Mistake
from tests.plan.build import BATCH, stage, treatment

DECAYS = ["linear", "cosine", "1-sqrt", "1-square"]


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.75, 0.5), ("cosine", 0.5 * (1 + math.cos(math.pi / 4)), 0.5), ("1-sqrt", 0.5, 1 - math.sqrt(0.5))],
)
def test_shapes_match_their_closed_forms(shape: str, quarter: float, half: float) -> None:
    piece = {"shape": shape, "from": 2.0, "to": 1.0, "start": 1000, "end": 2000}
    assert rate(piece, 1000, 10) == 2.0
    assert rate(piece, 1250, 10) == pytest.approx(1.0 + quarter, abs=1e-15)
    assert rate(piece, 1500, 10) == pytest.approx(1.0 + half, abs=1e-15)
    assert rate(piece, 2000, 10) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("shape", DECAYS)
def test_a_decay_to_zero_spends_no_update_on_a_rate_of_zero(shape: str) -> None:
    pieces = schedule(treatment(stage("stable", 4), stage("decay", 8, shape, end=0.0)))
    rates = [rate(pieces[-1][2], t, BATCH) for t in range(4 * BATCH, 12 * BATCH, BATCH)]
    assert rates[0] == 6e-3
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)


def test_a_warmup_wastes_no_update_and_reaches_the_peak() -> None:
    pieces = schedule(treatment(stage("stable", 10, warmup=4)))
    rates = [rate(pieces[0][2], t, BATCH) for t in range(0, 4 * BATCH, BATCH)]
    assert rates == pytest.approx([0.25 * 6e-3, 0.5 * 6e-3, 0.75 * 6e-3, 6e-3], rel=1e-15)
    assert rates[-1] == 6e-3
    assert pieces[1][2] == {"shape": "constant", "value": 6e-3}


def test_a_stage_begins_where_the_one_before_it_ended() -> None:
    pieces = schedule(
        treatment(stage("a", 4), stage("b", 4, "linear", end=1e-3), stage("c", 4), stage("d", 4, "cosine", end=0.0))
    )
    assert pieces[2][2] == {"shape": "constant", "value": 1e-3}
    assert pieces[3][2]["from"] == 1e-3


def test_a_decay_that_goes_nowhere_is_the_constant_that_it_is() -> None:
    pieces = schedule(treatment(stage("a", 4), stage("b", 4, "cosine", end=6e-3)))
    assert pieces[1][2] == pieces[0][2]


def test_from_base_without_the_rate_of_the_base_is_a_mistake_with_its_place() -> None:
    with pytest.raises(Mistake) as caught:
        schedule(treatment(stage("decay", 4, "linear", end=0.0, start="base")))  # type: ignore[arg-type]
    assert caught.value.path == ("stages", "decay", "lr", "from")


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.sampled_from(DECAYS))
def test_pieces_are_contiguous_and_cover_the_path(lengths: list[int], shape: str) -> None:
    stages = [
        stage(f"s{i}", n, shape if i % 2 else "constant", end=1e-3 / (i + 1) if i % 2 else None)
        for i, n in enumerate(lengths)
    ]
    pieces = schedule(treatment(*stages))
    assert pieces[0][0] == 0
    assert pieces[-1][1] == sum(lengths) * BATCH
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
