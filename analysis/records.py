"""What the report reads out of a results folder, as typed records: arms, runs, their points, tasks and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["done", "diverged", "failed", "unevaluated", "unfinished"]
END = "end"
BASE = "base"
EMA = "ema"  # the averaged weights at the end of a path


@dataclass(frozen=True, slots=True)
class Arm:
    """One treatment: its own name first, then the other names that the study gives it.

    control: it is there to check the study itself (an A/A arm), and is compared with nothing but what it repeats.
    merge: of an arm that is made of others' weights, what it is merged of: `seeds`, `arms` or `checkpoints`.
    """

    name: str
    aliases: tuple[str, ...]
    changes: Mapping[str, Any]
    control: bool = False
    merge: str | None = None

    @property
    def pooled(self) -> bool:
        """Whether it is one model of all seeds: it has no replicates, and is a row without tests."""
        return self.merge == "seeds"


@dataclass(frozen=True, slots=True)
class Point:
    """A state of a run at which it is evaluated."""

    label: str
    state: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one set of seeds. `status` says how far it came, `detail` why not further.

    made_of: of a merged run, the runs whose weights it is made of.
    """

    name: str
    arm: str
    seed: str
    path: tuple[str, ...]
    points: tuple[Point, ...]
    status: Status
    detail: str
    made_of: tuple[str, ...] = ()

    def point(self, label: str) -> Point | None:
        return next((point for point in self.points if point.label == label), None)


@dataclass(frozen=True, slots=True)
class Task:
    """One evaluation task of the study."""

    suite: str | None
    task: str
    kind: str
    key: str
    headline: str | None

    @property
    def held_out(self) -> bool:
        return self.kind == "held_out"

    @property
    def measured(self) -> bool:
        """Whether it gives metrics; texts to read do not."""
        return self.kind != "continuations"


@dataclass(frozen=True, slots=True)
class Value:
    """A metric of one run at one point. `evaluations`: folders, relative to the results folder, that it rests on."""

    value: float
    stderr: float | None
    n: int
    evaluations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """What the study wants compared, with alias names resolved to arms.

    not_worse: the margin of each metric in which an arm may lose, in the metric's own unit (a share, not percent).
    report_also: `tokens` or `flops`, by which differences are shown divided as well.
    """

    baseline: str
    control: str | None
    equal: str
    primary: tuple[str, ...]
    allow: Mapping[str, Sequence[str]]
    not_worse: Mapping[str, float] = field(default_factory=dict)
    report_also: str | None = None
