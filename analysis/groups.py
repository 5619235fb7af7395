"""Arms sorted by what they change: the factors of a paper's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.frame import Arm, Frame

DEPTH = 2  # `decay.lr` of `stages.decay.lr.shape`: the stage and the block
NOTHING = "as written"


@dataclass(frozen=True, slots=True)
class Group:
    """Arms that change the same factors. factors: such as `decay.mixture`, in the order of their first arm."""

    factors: tuple[str, ...]
    arms: tuple[Arm, ...]

    @property
    def title(self) -> str:
        return " × ".join(self.factors) or NOTHING


def factors_of(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The factors that changes touch: the stage and block of each path, each once."""
    shortened = (path.removeprefix("stages.").split(".")[:DEPTH] for path in changes)
    return tuple(dict.fromkeys(".".join(parts) for parts in shortened))


def groups_of(frame: Frame) -> list[Group]:
    """The compared arms but the baseline and the control, in groups, in the study's order."""
    apart = (frame.compare.baseline, frame.compare.control)
    found: dict[tuple[str, ...], list[Arm]] = {}
    for arm in frame.compared:
        if arm.name not in apart:
            found.setdefault(_key(factors_of(arm.changes)), []).append(arm)
    return [Group(factors, tuple(arms)) for factors, arms in found.items()]


def _key(factors: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(factors))
