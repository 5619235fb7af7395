"""What the measures of evaluations are: shares of something right, which a suite's average takes in, or others.

Names are lm-eval's, less the filter that it writes after a comma (`exact_match,flexible-extract`).
"""

from __future__ import annotations

ACCURACY = frozenset({"acc", "acc_norm", "acc_mutual_info", "exact_match", "em", "f1", "math_verify", "mcc", "pass@1"})
PROBABILITY = frozenset({"correct_prob", "correct_prob_norm", "likelihood"})


def unfiltered(measure: str) -> str:
    """The measure without its filter."""
    return measure.partition(",")[0]


def is_averaged(measure: str) -> bool:
    """Whether a suite's average takes this measure of a task in: losses and bits are never averaged in."""
    return unfiltered(measure) in ACCURACY | PROBABILITY
