"""The order in which a stage's rows are drawn from its sources.

Tijdeman's rule (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980): among the sources
that are due, take the one whose deadline is earliest. With k sources every prefix of n rows holds each source's
n x share to within 1 - 1/(2k - 2) rows, so less than one row off at every prefix. The order depends on the shares
alone: not on the stage's length, the world size or where training was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm


class Blend:
    """An endless sequence of source indices. `counts[i]` rows of source i have been drawn so far.

    The arithmetic is exact: shares become integers over their common denominator.
    """

    __slots__ = ("_deadlines", "_denominator", "_drawn", "_slack", "_weights", "counts")

    def __init__(self, shares: Sequence[Fraction], counts: Sequence[int] | None = None) -> None:
        """shares: positive and summing to 1. counts: rows drawn before (to go on after a cut)."""
        if not shares or any(share <= 0 for share in shares) or sum(shares) != 1:
            raise ValueError(f"shares must be positive and sum to 1, got {[str(s) for s in shares]}")
        if counts is not None and len(counts) != len(shares):
            raise ValueError(f"{len(counts)} counts for {len(shares)} shares")
        k = len(shares)
        slack = Fraction(1, 2 * k - 2) if k > 1 else Fraction(0)
        # Multiply everything by the common denominator of the shares and of the slack, to compare integers.
        self._denominator = lcm(*(share.denominator for share in shares), slack.denominator)
        self._weights = [int(share * self._denominator) for share in shares]
        self._slack = int(slack * self._denominator)
        self.counts = list(counts) if counts is not None else [0] * k
        self._drawn = sum(self.counts)
        self._deadlines = [self._deadline(i) for i in range(k)]

    def _deadline(self, i: int) -> int:
        """The last row (1-based) by which source i must be drawn again: ceil((1 - slack + count) / share)."""
        needed = (1 + self.counts[i]) * self._denominator - self._slack
        return -(-needed // self._weights[i])

    def next(self) -> int:
        """Draw one row: the index of its source. Ties go to the source that stands first."""
        if len(self.counts) == 1:
            chosen = 0
        else:
            row = self._drawn + 1
            chosen = -1
            for i, weight in enumerate(self._weights):
                # Due: drawing it now leaves it at most 1 - slack ahead of row x share.
                due = weight * row - self.counts[i] * self._denominator >= self._slack
                if due and (chosen < 0 or self._deadlines[i] < self._deadlines[chosen]):
                    chosen = i
            assert chosen >= 0, "some source is always due (Tijdeman 1980)"
        self.counts[chosen] += 1
        self._drawn += 1
        self._deadlines[chosen] = self._deadline(chosen)
        return chosen

    def take(self, rows: int) -> list[int]:
        """The next `rows` source indices."""
        return [self.next() for _ in range(rows)]


def drawn(shares: Sequence[Fraction], rows: int) -> list[int]:
    """Rows of each source among the first `rows`.

    The order of a blend repeats with the common denominator of its shares, so only the remainder is walked.
    """
    period = lcm(*(share.denominator for share in shares))
    whole, rest = divmod(rows, period)
    blend = Blend(shares)
    blend.take(rest)
    return [int(share * period) * whole + count for share, count in zip(shares, blend.counts, strict=True)]
