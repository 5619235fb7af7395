"""Every shape against numbers from the papers' formulas, written down here and computed nowhere in the harness."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan.schedule import Piece, end_rate, rate, schedule
from harness.plan.science import PathBuilder
from harness.study.errors import Mistake
from harness.study.treatment import Base, LearningRate, Stage, Treatment
from tests.plan.build import BATCH, IDENTITIES, SCRATCH, stage, treatment

TRAINED = Base({"path": "base"}, {"of": "model"}, "cold", 1e-3, 600 * BATCH)

# From 1 to 0 at x = 0, 1/8, ..., 7/8.
TO_ZERO = {
    "linear": [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    # (1 + cos(x 180 degrees)) / 2
    "cosine": [1, 0.961939766, 0.853553391, 0.691341716, 0.5, 0.308658284, 0.146446609, 0.038060234],
    "1-sqrt": [1, 0.646446609, 0.5, 0.387627564, 0.292893219, 0.209430585, 0.133974596, 0.064585653],
    "1-square": [1, 0.984375, 0.9375, 0.859375, 0.75, 0.609375, 0.4375, 0.234375],
}
# From 1 to 1/256: a factor of 2 every eighth.
HALVINGS = [1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]
# sqrt(4 / n) and (4 / n)^0.51 at n = 4, 5, 6, 8, 9, 12, 16, 36, 64 batches from the beginning of all training.
CLOCK = [4, 5, 6, 8, 9, 12, 16, 36, 64]
INVERSE_SQRT = [1, 0.894427191, 0.816496581, 0.707106781, 0.666666667, 0.577350269, 0.5, 0.333333333, 0.25]
POWER = [1, 0.892433571, 0.813192571, 0.702222438, 0.661282326, 0.571042, 0.493116352, 0.326089129, 0.243163736]


@pytest.mark.parametrize("shape", TO_ZERO)
def test_decays_to_zero_take_the_values_of_their_formula(shape: str) -> None:
    piece = {"shape": shape, "from": 1.0, "to": 0.0, "start": 8000, "end": 16000}
    assert [rate(piece, 8000 + 1000 * i, 500) for i in range(8)] == pytest.approx(TO_ZERO[shape], abs=1e-9)


@pytest.mark.parametrize("shape", TO_ZERO)
def test_a_decay_to_a_tenth_is_the_decay_to_zero_raised_by_its_end(shape: str) -> None:
    piece = {"shape": shape, "from": 3e-4, "to": 3e-5, "start": 0, "end": 800}
    expected = [3e-5 + 2.7e-4 * left for left in TO_ZERO[shape]]
    assert [rate(piece, 100 * i, 10) for i in range(8)] == pytest.approx(expected, rel=1e-8)


def test_an_exponential_decay_falls_by_the_same_factor_every_step() -> None:
    piece = {"shape": "exponential", "from": 1.0, "to": 1 / 256, "start": 0, "end": 8000}
    assert [rate(piece, 1000 * i, 500) for i in range(8)] == pytest.approx(HALVINGS, rel=1e-14)


@pytest.mark.parametrize(
    ("shape", "exponent", "expected"), [("inverse-sqrt", None, INVERSE_SQRT), ("power", -0.51, POWER)]
)
def test_open_ended_decays_from_scratch_begin_at_the_end_of_the_warm_up(
    shape: str, exponent: float | None, expected: list[float]
) -> None:
    pieces = schedule(treatment(_open(shape, 64, warmup=4, exponent=exponent)))
    assert [_rate(pieces, n - 1) for n in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1], rel=1e-15)
    got = [rate(pieces[1][2], n * BATCH, BATCH) for n in CLOCK]
    assert got == pytest.approx(expected, abs=2e-6 if shape == "power" else 1e-9)


@pytest.mark.parametrize(("shape", "exponent"), [("inverse-sqrt", None), ("power", -0.51), ("power", -1.0)])
def test_open_ended_decays_count_the_tokens_of_the_base(shape: str, exponent: float | None) -> None:
    (whole,) = schedule(Treatment(TRAINED, (_open(shape, 3000, exponent=exponent),)))
    for batches in (0, 1, 10, 200, 600, 1000, 1800, 2999):
        ratio = 600 / (600 + batches)
        assert rate(whole[2], batches * BATCH, BATCH) == pytest.approx(ratio ** -(exponent or -0.5), rel=1e-14)
    # Four times the tokens of the base halve the rate: 600 + 1800 = 4 x 600.
    if shape == "inverse-sqrt":
        assert rate(whole[2], 1800 * BATCH, BATCH) == pytest.approx(0.5, rel=1e-15)


def test_eight_one_one_of_deepseek() -> None:
    lr = LearningRate("multi-step", 1.0, None, 4 * BATCH, milestones=(80 * BATCH, 90 * BATCH), factors=(0.316, 0.1))
    pieces = schedule(treatment(replace(stage("all", 100), lr=lr)))
    at = [(0, 0.25), (3, 1.0), (4, 1.0), (40, 1.0), (79, 1.0), (80, 0.316), (89, 0.316), (90, 0.1), (99, 0.1)]
    assert [_rate(pieces, batch) for batch, _ in at] == [value for _, value in at]
    assert [piece["shape"] for _, _, piece in pieces[1:]] == ["constant"] * 3
    assert end_rate(pieces[-1][2]) == 0.1


def test_a_constant_is_constant() -> None:
    (piece,) = schedule(treatment(stage("all", 8)))
    assert [_rate([piece], batch) for batch in range(8)] == [6e-3] * 8


def test_a_warm_up_may_start_where_the_stage_before_ended() -> None:
    again = LearningRate("linear", 2e-3, 0.0, 4 * BATCH, warmup_from="previous")
    pieces = schedule(treatment(stage("a", 4, "linear", end=4e-4), replace(stage("b", 12), lr=again)))
    assert [_rate(pieces, batch) for batch in (4, 5, 6, 7)] == pytest.approx([8e-4, 1.2e-3, 1.6e-3, 2e-3], rel=1e-14)
    assert _rate(pieces, 7) == _rate(pieces, 8) == 2e-3


def test_without_it_a_warm_up_in_a_later_stage_rises_from_zero() -> None:
    again = LearningRate("linear", 2e-3, 0.0, 4 * BATCH)
    pieces = schedule(treatment(stage("a", 4), replace(stage("b", 12), lr=again)))
    assert [_rate(pieces, batch) for batch in (4, 5, 6, 7)] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3], rel=1e-14)


def test_a_warm_up_that_does_not_rise_is_a_mistake_with_its_place() -> None:
    again = LearningRate("constant", None, None, 4 * BATCH, warmup_from="previous")
    with pytest.raises(Mistake, match="expected a lower rate") as caught:
        schedule(treatment(stage("a", 4), replace(stage("b", 12), lr=again)))
    assert caught.value.path == ("stages", "b", "lr", "warmup_from")


@pytest.mark.parametrize("shape", ["inverse-sqrt", "power"])
def test_a_stage_that_goes_on_with_an_open_ended_decay_is_the_same_piece(shape: str) -> None:
    exponent = -0.51 if shape == "power" else None
    first = _open(shape, 8, warmup=2, exponent=exponent)
    on = replace(_open(shape, 8, exponent=exponent), lr=LearningRate(shape, None, None, 0, exponent=exponent))  # type: ignore[arg-type]
    builder = PathBuilder(IDENTITIES)
    two, one = builder.pieces(treatment(first, on)), builder.pieces(treatment(_open(shape, 16, 2, exponent)))
    assert [(p.start, p.end, p.key) for p in two] == [(p.start, p.end, p.key) for p in one]


@pytest.mark.parametrize("shape", ["inverse-sqrt", "power"])
def test_a_decay_begins_where_it_branches_off_an_open_ended_trunk(shape: str) -> None:
    exponent = -0.51 if shape == "power" else None
    keys = set()
    for trunk in (12, 20):
        path = treatment(_open(shape, trunk, 4, exponent), stage("decay", 4, "linear", end=0.0))
        pieces = schedule(path)
        assert pieces[2][2]["from"] == rate(pieces[1][2], trunk * BATCH, BATCH)
        keys.add(PathBuilder(IDENTITIES).pieces(path)[1].key)
    assert len(keys) == 1, "trunks of different lengths are one trunk as far as both go"


def test_one_schedule_over_all_stages_is_the_schedule_of_one_long_stage() -> None:
    for lr in (
        LearningRate("multi-step", None, None, 2 * BATCH, milestones=(8 * BATCH, 9 * BATCH), factors=(0.5, 0.25)),
        LearningRate("inverse-sqrt", None, None, 2 * BATCH),
        LearningRate("exponential", None, 1e-5, 2 * BATCH),
    ):
        stages = tuple(replace(stage(name, n), lr=None) for name, n in (("a", 4), ("b", 6)))
        whole = schedule(Treatment(SCRATCH, stages, lr))
        single = schedule(treatment(replace(stage("all", 10), lr=lr)))
        assert [_rate(whole, n) for n in range(10)] == [_rate(single, n) for n in range(10)]


_ANY = st.sampled_from([*TO_ZERO, "exponential", "inverse-sqrt", "power"])


@given(_ANY, st.floats(1e-6, 1e-1), st.floats(1e-3, 0.99), st.integers(1, 400), st.integers(1, 50))
def test_every_decay_begins_exactly_at_from_ends_at_to_and_never_rises(
    shape: str, begin: float, part: float, batches: int, start: int
) -> None:
    end = begin * part
    piece: dict[str, Any] = {"shape": shape, "from": begin, "start": start * BATCH}
    is_open = shape in ("inverse-sqrt", "power")
    piece |= {"seen": 0} if is_open else {"to": end, "end": (start + batches) * BATCH}
    piece |= {"exponent": -0.51} if shape == "power" else {}
    rates = [rate(piece, (start + n) * BATCH, BATCH) for n in range(batches + 1)]
    assert rates[0] == begin
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(rates))
    assert rates[-1] == (end_rate(piece, (start + batches) * BATCH) if is_open else end)


@given(_ANY, st.integers(1, 30), st.integers(1, 30))
def test_where_training_is_cut_changes_no_rate(shape: str, first: int, more: int) -> None:
    """The pieces of a path that a job gets end at its cut; open-ended ones are the same for a longer path, too."""
    exponent = -0.51 if shape == "power" else None
    lr = LearningRate(shape, None, 1e-5 if shape in (*TO_ZERO, "exponential") else None, BATCH, exponent=exponent)  # type: ignore[arg-type]
    one = schedule(treatment(replace(stage("all", first + more + 1), lr=lr)))
    if exponent is not None or shape == "inverse-sqrt":
        longer = schedule(treatment(replace(stage("all", first + more + 50), lr=lr)))
        assert one[-1][2] == longer[-1][2]
    builder = PathBuilder(IDENTITIES)
    pieces = builder.pieces(treatment(replace(stage("all", first + more + 1), lr=lr)))
    cut = [piece for piece in pieces if piece.start < first * BATCH]
    for n in range(first):
        piece = next(p for p in cut if p.start <= n * BATCH < p.end)
        assert rate(piece.science["lr"], n * BATCH, BATCH) == _rate(one, n)


def _open(shape: str, batches: int, warmup: int = 0, exponent: float | None = None) -> Stage:
    lr = LearningRate(shape, 1.0, None, warmup * BATCH, exponent=exponent)  # type: ignore[arg-type]
    return replace(stage("trunk", batches), lr=lr)


def _rate(pieces: list[tuple[int, int, Piece]], batch: int) -> float:
    piece = next(piece for start, end, piece in pieces if start <= batch * BATCH < end)
    return rate(piece, batch * BATCH, BATCH)


def test_the_table_of_powers_is_right() -> None:
    assert pytest.approx([math.exp(0.51 * (math.log(4) - math.log(n))) for n in CLOCK], abs=2e-6) == POWER
