"""What the executors are given: items of work, each done in one process, with what each must wait for.

`base` prepares the state before token 0, `train` and `merge` make one segment, `evaluate` runs every missing task of
one state.
The noun "job" is kept for Slurm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["base", "train", "merge", "evaluate"]
Outcome = Literal[
    "prepared", "trained", "merged", "diverged", "evaluated", "stopped", "failed", "blocked", "unreachable"
]

MAKES_STATE: frozenset[str] = frozenset({"prepared", "trained", "merged"})


@dataclass(frozen=True)
class Work:
    """One item of work.

    state: the state that it makes (base, train, merge) or evaluates. needs: the state that must be there before it may
    start; None for a base. also: others that must be there, of a merge of several. tokens: what it trains, 0 when it
    trains nothing. name: what a person calls it. detail: what the work function needs besides, as JSON.
    """

    kind: Kind
    state: str
    needs: str | None
    tokens: int
    name: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    @property
    def awaits(self) -> tuple[str, ...]:
        """All states that must be there before it may start."""
        return self.also if self.needs is None else (self.needs, *self.also)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Work:
        """An item as `asdict` wrote it to a file."""
        return cls(**{**line, "also": tuple(line.get("also", ()))})

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.state}"

    @property
    def makes(self) -> str | None:
        """The state that is there when this is done; an evaluation makes none."""
        return None if self.kind == "evaluate" else self.state


@dataclass(frozen=True)
class Failure:
    """Why an item failed. kind: the class, one word, from `failures`; error: the last line that says what happened."""

    kind: str
    error: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.error}"


@dataclass(frozen=True)
class Result:
    """How an item ended. `blocked`: a state that it needs failed. `unreachable`: one that it needs diverged."""

    outcome: Outcome
    failure: Failure | None = None


@dataclass(frozen=True)
class Order:
    """A work item with all that a worker needs to do it, as JSON over a pipe."""

    folder: str
    kind: Kind
    state: str
    settings: Mapping[str, Any]
    detail: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Order:
        return cls(**value)


def result_json(result: Result) -> dict[str, Any]:
    """A result as it crosses a pipe."""
    return asdict(result)


def result_from_json(value: Mapping[str, Any]) -> Result:
    failure = value["failure"]
    return Result(value["outcome"], None if failure is None else Failure(**failure))
