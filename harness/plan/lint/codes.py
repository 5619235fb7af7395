"""The findings that there are, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.study.errors import Mistake, nearest

# Known from the declaration alone, before anything runs.
OF_TREATMENTS: Mapping[str, str] = {
    "undeclared-difference": "an arm differs from the baseline in something that it does not declare",
    "unequal-tokens": "an arm trains on another number of tokens than the baseline (a merge: all that it is made "
    "of), and `compare.equal` is tokens",
    "unequal-flops": "an arm's path costs more than 1 % more or less than the baseline's, and `compare.equal` is flops",
    "schedule-open": "an arm's learning rate has not come to the end of a decay where it is compared",
    "confounded": "an axis also changes another source's tokens, the total or the number of updates",
    "no-control": "no arm spends the same budget on the pre-training mixture, or the one that is named is the baseline "
    "under another name",
    "crossed-seeds": "replicates share seeds with one another, and are counted as independent",
    "cold-without-warmup": "training, or a stage, starts with a fresh optimizer at a high rate without warm-up",
    "rewarms-annealed-base": "the rate rises again after it was annealed, which costs loss before it gains any",
    "never-drawn": "a stage gives a source so small a share that it draws no row of it",
    "context-unused": "a longer window over documents that are hardly longer than the one before",
}
# Known from what has run.
OF_RESULTS: Mapping[str, str] = {
    "different-tokenizer": "states were made with another tokenizer",
    "different-evaluation": "results of one task were computed with other settings or versions",
    "different-numerics": "arms were computed on other devices, threads, micro-batches or with another torch",
    "different-code": "arms were trained by other code",
    "same-declaration-different-results": "what was declared equal came out different",
    "control-failed": "a control of the study did not hold",
}
CODES: Mapping[str, str] = {**OF_TREATMENTS, **OF_RESULTS}


@dataclass(frozen=True)
class Lint:
    """One finding. arm: the arm that it is about, "" for the study."""

    level: Literal["error", "warning"]
    code: str
    arm: str
    message: str


def check_allowed(allow: Mapping[str, Sequence[str]]) -> None:
    """Raise Mistake for a name under `compare.allow` that is no finding."""
    for arm, codes in allow.items():
        for index, code in enumerate(codes):
            if code not in CODES:
                place = ("compare", "allow", arm, index)
                raise Mistake(place, f"`{code}` is no finding that can be allowed; {nearest(code, CODES)}")
