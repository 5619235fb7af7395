"""What a results folder holds, as planning needs it. Pure records; `harness.launch.observe` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class AttemptSeen:
    """One try at a state that computed something. numerics: as recorded, flat; code: its tree hash."""

    numerics: Mapping[str, str]
    code: str | None


@dataclass(frozen=True)
class StateSeen:
    """One state's folder. outcome `damaged`: its marker or a file of its final checkpoint does not hold (`reason`
    names it); `partial`: work was begun and is not done; `stale`: other code made it and the study wants it made again.

    code: tree hash of the code that trained it. of_tokenizer: identity of the tokenizer that its science names;
    tokenizer: digest of the tokenizer's files beside its weights. disagreements: tokens of updates that two attempts
    of equal code and numerics computed differently."""

    outcome: Literal["trained", "diverged", "damaged", "partial", "stale"]
    weights: str | None = None
    reason: str = ""
    code: str | None = None
    checkpoint: str | None = None
    attempts: tuple[AttemptSeen, ...] = ()
    tokenizer: str | None = None
    of_tokenizer: str | None = None
    disagreements: tuple[int, ...] = ()


@dataclass(frozen=True)
class CheckpointSeen:
    """A whole checkpoint, under whichever state's folder it lies: `owner`."""

    path: str
    tokens: int
    owner: str = ""


@dataclass(frozen=True)
class EvaluationSeen:
    """A whole result of one task for one set of weights. facts: settings, versions and numerics, flat."""

    weights: str
    key: str
    task: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Observed:
    """states and checkpoints by fingerprint; evaluations as (weights, task key); previous: the plan.json that was
    there; code: tree hash of the code that would run now; results: what each evaluation was computed with."""

    states: Mapping[str, StateSeen] = field(default_factory=dict)
    checkpoints: Mapping[str, CheckpointSeen] = field(default_factory=dict)
    evaluations: frozenset[tuple[str, str]] = frozenset()
    previous: Mapping[str, Any] | None = None
    code: str | None = None
    results: tuple[EvaluationSeen, ...] = ()


NOTHING = Observed()


@dataclass(frozen=True)
class TaskRef:
    """One evaluation task of the study: its key names everything about it but the weights.

    kind: `lm_eval`, `held_out` or `continuations` (which gives texts and no metric). headline: the metric that stands
    for the task in a suite's average, if any does.
    """

    suite: str
    task: str
    kind: str
    key: str
    headline: str | None = None

    @property
    def for_reading(self) -> bool:
        """Whether it gives texts, which are wanted once an arm and no metric of anything."""
        return self.kind == "continuations"
