"""What a plan consists of: arms, runs with their points, bases and evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.plan.observed import TaskRef
from harness.plan.science import Piece

if TYPE_CHECKING:
    from harness.study.treatment import SeedSet

BASE = "base"
END = "end"


@dataclass(slots=True)
class PlanArm:
    """An arm; `same_as` names the arm with equal science that is trained in its place, None when it is its own.

    control: an A/A arm, trained although another has its science, with seeds of its own. merge: for an arm that is made
    of others' weights, what it is merged of (`seeds`, `arms`, `checkpoints`).
    """

    name: str
    changes: Mapping[str, Any]
    fingerprint: str
    same_as: str | None
    control: bool = False
    merge: str | None = None


def own_names(arms: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Name of an arm → the name under which its science is trained. arms: (name, same_as)."""
    return {name: same_as or name for name, same_as in arms}


def names_of(arms: Iterable[PlanArm]) -> dict[str, str]:
    """`own_names` of the arms of a plan."""
    return own_names((arm.name, arm.same_as) for arm in arms)


@dataclass(slots=True)
class Point:
    """A named state of a run. `segment` is None for the base; `state` is the folder's name either way."""

    label: str
    segment: str | None
    tokens: int
    state: str


@dataclass(slots=True)
class PlanRun:
    """An arm with its seeds: the segments of its path from token 0 and its named points.

    made_of: of a merged run, the runs whose weights it is made of, by their index in the plan. Its path is the one
    segment that merges them, and its pieces are those of the last of them.
    """

    name: str
    arm: str
    seeds: SeedSet
    base: str
    path: list[str]
    points: list[Point]
    pieces: list[Piece]
    data_seeds: list[int]
    tokens: int
    made_of: tuple[int, ...] = ()


@dataclass(slots=True)
class BaseState:
    """The state before token 0 of all runs with one init seed."""

    id: str
    science: dict[str, Any]
    needed: bool


@dataclass(slots=True)
class PlanEval:
    """One task at one point of one run."""

    run: str
    label: str
    state: str
    task: TaskRef
    done: bool
