"""Ranks that would compute unlike bits are named, whichever of them has a fact that the other has not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.study.errors import UserError
from harness.train.prepare import _check_numerics
from harness.train.ranks import Ranks
from tests.train import build

COMPILED = replace(build.NUMERICS, compile=True)


@pytest.mark.parametrize(
    ("of_first", "own", "said"),
    [(COMPILED, build.NUMERICS, "compile True and None"), (build.NUMERICS, COMPILED, "compile None and True")],
)
def test_a_fact_that_one_rank_alone_records_is_a_difference(
    of_first: Any, own: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(1, 2)
    monkeypatch.setattr(ranks, "led", lambda work: of_first.record())
    with pytest.raises(UserError, match=f"ranks 0 and 1 cannot train together, since they differ: {said}"):
        _check_numerics(own, ranks)
    monkeypatch.setattr(ranks, "led", lambda work: own.record())
    _check_numerics(own, ranks)
