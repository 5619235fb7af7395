"""What an arm whose length is not known yet might still make right is not refused."""

from __future__ import annotations

import pytest

from harness.study.errors import Mistake
from harness.study.intervals import check_intervals
from tests.study.conftest import Load

LONG = """
ablate: [{cases: {long: {stages.stable.tokens: 512000}}}]
eval: {max_length: 128, held_out: {window: 64}, at: [end, every 102400]}
keep: {checkpoints: every 0.1024M}
launch: {checkpoint_every: 102400}
"""


def test_one_arm_that_an_interval_divides_is_enough_where_the_end_is_evaluated(load: Load) -> None:
    study = load(LONG)
    short = study.arms[:1]
    with pytest.raises(Mistake, match="yields no point on any arm"):
        check_intervals(study.spec, short)
    check_intervals(study.spec, study.arms, unsolved=["long"])
