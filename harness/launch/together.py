"""Orders that several processes do together: rank 0 has them, trains with the others, and does the rest alone.

rank 0      Job(submission, task, leading(ranks, perform)).run(), then dismiss(ranks)
others      follow(ranks, perform)
"""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

from harness.launch.stop import Stop
from harness.launch.work import Order, Result
from harness.launch.worker import Perform, Progress

if TYPE_CHECKING:
    from harness.train.ranks import Ranks

TOGETHER = frozenset({"train"})


def leading(ranks: Ranks, perform: Perform) -> Perform:
    """`perform` for rank 0: an order to train goes to the other ranks as well, every other kind is rank 0's alone.

    What it returns raises RankLost once a rank is gone; then nothing can be trained any more in this process.
    """
    from harness.train.ranks import using

    def lead(order: Order, progress: Progress) -> Result:
        if order.kind not in TOGETHER:
            return perform(order, progress)
        ranks.hand_out(order.to_json())
        with using(ranks), ranks.together():
            return perform(order, progress)

    return lead


def follow(ranks: Ranks, perform: Perform) -> None:
    """On every other rank: do what rank 0 hands out until it dismisses the ranks.

    An order that fails is rank 0's to report; the next one may come. Signals are noted while an order is done and
    ignored between orders: whether the job stops is rank 0's decision. Raises RankLost when a rank is gone.
    """
    from harness.train.ranks import RankLost, using

    with Stop():
        while (told := ranks.hand_out()) is not None:
            try:
                with using(ranks), ranks.together():
                    perform(Order.from_json(told), lambda fields: None)
            except RankLost:
                raise
            except Exception:
                traceback.print_exc()


def dismiss(ranks: Ranks) -> None:
    """On rank 0, at the end, whatever it was: the other ranks leave `follow`. Then gives up its own place."""
    from harness.train.ranks import RankLost

    with contextlib.suppress(RankLost):
        ranks.hand_out(None)
    ranks.leave()
