"""Intervals against the paths that they divide: one that is longer than a path would be accepted and do nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from harness.study.errors import Mistake
from harness.study.paths import Path
from harness.study.schema import StudySpec
from harness.study.treatment import Arm
from harness.study.units import parse_every

END = "end"
MOST_POINTS = 10_000  # at which one path is evaluated; each is a state that stays


def check_intervals(spec: StudySpec, arms: Sequence[Arm], unsolved: Collection[str] = ()) -> None:
    """Every interval of a study has a token before the end of a path. Raises Mistake.

    unsolved: arms whose length is not known yet; what they might still make right is not refused.
    """
    lengths = {arm.name: arm.treatment.tokens for arm in arms if arm.name not in unsolved}
    longest = None if unsolved else max(lengths.values())
    _check_evaluated(spec, lengths, longest)
    keep, every = spec.keep.checkpoints, spec.launch.checkpoint_every
    if keep == "all" and every is None:
        message = "keeps every checkpoint that is written, and nothing asks for one before the end of a segment"
        expected = "expected `launch.checkpoint_every` beside it, or an interval such as every 1B"
        raise Mistake(("keep", "checkpoints"), f"{message}; {expected}")
    if longest is not None and isinstance(keep, int):
        _check_reached(keep, longest, ("keep", "checkpoints"), "`last`")
    if longest is not None and every is not None:
        _check_reached(every, longest, ("launch", "checkpoint_every"), "null")


def _check_evaluated(spec: StudySpec, lengths: dict[str, int], longest: int | None) -> None:
    """`eval.at: [every N]` on paths of so many tokens, by arm."""
    every = spec.eval.every
    if every is None:
        return
    index = next(index for index, text in enumerate(spec.eval.at) if parse_every(text))
    path, text = ("eval", "at", index), spec.eval.at[index]
    for arm, tokens in lengths.items() if END not in spec.eval.labels else ():
        if every >= tokens:
            message = f"`{text}` yields no point on arm `{arm}`, whose path has {tokens:,} tokens"
            raise Mistake(path, f"{message}, and `end` is not listed; expected `end` beside it, or a shorter interval")
    if longest is not None and longest // every > MOST_POINTS:
        message = f"`{text}` yields {longest // every:,} points on a path of {longest:,} tokens"
        raise Mistake(path, f"{message}; expected an interval that yields at most {MOST_POINTS:,}")
    if longest is not None and every >= longest:
        message = f"`{text}` yields no point on any arm: the longest path has {longest:,} tokens"
        raise Mistake(path, f"{message}; expected a shorter interval, or none beside `end`")


def _check_reached(every: int, longest: int, path: Path, without: str) -> None:
    if every >= longest:
        message = f"{every:,} tokens reach beyond every path: the longest has {longest:,}, so it would do nothing"
        raise Mistake(path, f"{message}; expected fewer, or {without}")
