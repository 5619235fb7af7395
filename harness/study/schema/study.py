"""A whole study, and what an arm may change of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.study.blocks import Block, TokensSeen, choice
from harness.study.blocks import Tokens as TokensField
from harness.study.paths import description
from harness.study.schema.ablation import KINDS as ITEM_KINDS
from harness.study.schema.ablation import ItemSpec, SeedsSpec
from harness.study.schema.base import BaseSpec, SourceSpec
from harness.study.schema.controls import ControlSpec
from harness.study.schema.evaluation import CompareSpec, EvalSpec
from harness.study.schema.execution import BudgetSpec, KeepSpec, LaunchSpec
from harness.study.schema.merge import MergeSpec
from harness.study.schema.scalars import Text, Texts, Unsigned
from harness.study.schema.tracking import Tracking
from harness.study.schema.training import LrSpec, StageSpec, TrainSpec


class StudySpec(Block):
    """A whole study, after include and `--set`."""

    schema_version: Literal[1] = Field(alias="schema", description="1, the version of this grammar")
    study: Text = Field(description="the study's name")
    question: str | None = Field(None, description="what the study asks, in words")
    notes: str | None = Field(None, description="text")
    include: Texts | None = Field(None, description="a list of files relative to this one; later ones win")
    base: BaseSpec = Field(description="a mapping of model, tokenizer, optimizer, lr")
    sources: Annotated[dict[str, SourceSpec], Field(min_length=1)] = Field(
        description="a mapping of at least one name: source"
    )
    train: TrainSpec = Field(default_factory=TrainSpec, description="a mapping of what every stage inherits")
    lr: LrSpec | None = Field(None, description="one schedule over all stages: shape, from, to, warmup")
    total: TokensField | None = Field(None, description="tokens of all stages together, such as ~10B")
    stages: Annotated[dict[str, StageSpec], Field(min_length=1)] = Field(
        description="an ordered mapping of at least one name: stage"
    )
    ablate: list[ItemSpec] = Field(
        default_factory=list, description="a list of items, each one of " + ", ".join(ITEM_KINDS)
    )
    merge: dict[str, MergeSpec] = Field(
        default_factory=dict, description="a mapping of names: arms that are made of others' weights"
    )
    seeds: SeedsSpec = Field(default_factory=SeedsSpec, description="a mapping of init, data, pair, from")
    controls: list[ControlSpec] = Field(
        default_factory=list, description="a list of {name, same_as, seeds} or {name, reproduce}"
    )
    eval: EvalSpec = Field(default_factory=EvalSpec, description="a mapping of suites, at, max_length, held_out")
    compare: CompareSpec = Field(default_factory=CompareSpec, description="a mapping of baseline, control, ...")
    stale: Annotated[Literal["reuse", "rerun", "refuse"], choice("reuse", "rerun", "refuse")] = Field(
        "reuse", description="reuse, rerun or refuse what other code has trained"
    )
    launch: LaunchSpec = Field(default_factory=LaunchSpec, description="a mapping of jobs, threads, device, ...")
    budget: BudgetSpec = Field(default_factory=BudgetSpec, description="a mapping of gpu_hours")
    keep: KeepSpec = Field(default_factory=KeepSpec, description="a mapping of checkpoints")
    track: Tracking = Field(
        "none", description="none, wandb, trackio or tensorboard, or a mapping of these with their settings"
    )


class BaseChange(Block):
    """What an arm may change of the base."""

    later: ClassVar[frozenset[str]] = frozenset({"model", "revision", "tokenizer", "run"})

    optimizer: Annotated[Literal["cold", "carried"], choice("cold", "carried")] | None = Field(
        None, description="cold or carried"
    )
    lr: Unsigned | None = Field(None, description="the rate at which the base was left, from 0")
    tokens_seen: TokensSeen | None = Field(
        None, description="tokens that the base was trained on, such as 600B (inverse-sqrt and power go on from there)"
    )


class ArmSpec(Block):
    """What an arm may change: the science of training. Everything else is the same for every arm."""

    base: BaseChange | None = Field(None, description="a mapping of optimizer, lr")
    train: TrainSpec | None = Field(None, description="a mapping of what every stage inherits")
    lr: LrSpec | None = Field(None, description="one schedule over all stages: shape, from, to, warmup")
    total: TokensField | None = Field(None, description="tokens of all stages together, such as ~10B")
    stages: dict[str, StageSpec] | None = Field(None, description="a mapping of the stages to change")


def description_of(path: Sequence[str | int]) -> str:
    """What is expected at a path of the study, in words."""
    return description(StudySpec, path) or "a value"
