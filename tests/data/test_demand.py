"""Shortage is found before training, and the message says what would fit."""

from __future__ import annotations

import pytest

from harness.data import check_demand, requested_by_piece, requested_tokens, shortages
from harness.study.errors import UserError
from tests.data.toys import piece

MIXTURE = {"web": "9/10", "math": "1/10"}


def test_requested_tokens_are_whole_rows_of_the_declared_shares() -> None:
    pieces = [piece(0, 800, {"web": "1"}, stage="stable"), piece(800, 1600, MIXTURE, stage="decay")]
    assert requested_by_piece(pieces) == [{"web": 800}, {"web": 720, "math": 80}]
    assert requested_tokens(pieces) == {"math": 80, "web": 1520}


def test_a_cut_inside_a_stage_does_not_change_what_is_asked() -> None:
    whole = [piece(0, 1600, {"web": "2/3", "math": "1/3"})]
    for cut in range(16, 1600, 112):
        parts = [
            piece(0, cut, {"web": "2/3", "math": "1/3"}),
            piece(cut, 1600, {"web": "2/3", "math": "1/3"}, blend_from=0),
        ]
        assert requested_tokens(parts) == requested_tokens(whole)


def test_a_source_may_be_used_up_to_its_cap_and_no_row_more() -> None:
    pieces = [piece(0, 1600, MIXTURE)]
    assert requested_tokens(pieces)["math"] == 160
    assert shortages(pieces, {"web": 10_000, "math": 160}, {"math": 1}) == []
    assert shortages(pieces, {"web": 10_000, "math": 80}, {"math": 2.0}) == []
    (found,) = shortages(pieces, {"web": 10_000, "math": 159}, {"math": 1})
    assert (found.source, found.asked, found.allowed) == ("math", 160, 159)


def test_without_a_cap_a_source_may_be_repeated() -> None:
    pieces = [piece(0, 1600, MIXTURE)]
    assert shortages(pieces, {"web": 10, "math": 10}, {"web": None}) == []


def test_the_largest_share_that_is_named_fits_and_a_larger_one_does_not() -> None:
    pool = {"web": 100_000, "math": 1000}
    trunk = piece(0, 8000, MIXTURE, stage="stable")  # 800 tokens of math

    def decay(share: str) -> list[dict[str, object]]:
        rest = f"{100 - int(share)}/100"
        return [trunk, piece(8000, 9600, {"web": rest, "math": f"{share}/100"}, stage="decay")]

    (found,) = shortages(decay("50"), pool, {"math": 1})
    assert found.stage == "decay"
    assert found.largest_share is not None
    assert float(found.largest_share) == 200 / 1600
    assert shortages(decay("12"), pool, {"math": 1}) == []
    assert len(shortages(decay("14"), pool, {"math": 1})) == 1


def test_the_error_names_run_source_epochs_cap_and_remedy() -> None:
    pieces = [piece(0, 1600, {"web": "1/2", "math": "1/2"}, stage="decay")]
    with pytest.raises(UserError) as raised:
        check_demand(pieces, {"web": 10_000, "math": 400}, {"math": 1.5}, "math=0.5/d1")
    message = str(raised.value)
    for part in ("math=0.5/d1", "`math`", "800 tokens", "2 epochs", "1.5", "at most 600", "0.375", "`decay`"):
        assert part in message
    assert "\n" not in message


def test_when_an_earlier_stage_alone_asks_too_much_its_share_is_the_one_named() -> None:
    pieces = [
        piece(0, 8000, {"web": "1/2", "math": "1/2"}, stage="stable"),
        piece(8000, 8160, MIXTURE, stage="decay"),
    ]
    (found,) = shortages(pieces, {"web": 10_000, "math": 2016}, {"math": 1})
    assert found.stage == "stable"
    assert found.largest_share is not None
    assert float(found.largest_share) == 2000 / 8000


def test_what_another_view_of_the_pool_serves_counts_against_the_cap() -> None:
    pieces = [piece(0, 1600, MIXTURE)]
    pools, shared = {"web": 2880, "math": 320}, {"math": ["web"]}
    assert shortages(pieces, pools, {"math": 1}) == []
    assert shortages(pieces, pools, {"math": 1}, shared) == [], "half an epoch of its own and half of the whole pool"
    (found,) = shortages(pieces, pools, {"math": 0.75}, shared)
    assert (found.epochs, found.asked, found.allowed) == (1, 160, 80)
