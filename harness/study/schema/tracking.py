"""Where the metrics of a study are shown, besides its results folder. Execution: it names no work."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.study.blocks import MAPPING, TEXT, TEXT_OR_MAPPING, Block, choice, said
from harness.study.schema.scalars import Text

_LOGIN = "a key does not belong in a study; expected WANDB_API_KEY in the environment, or `wandb login`"
_FORBIDDEN_IN_PROJECTS = re.compile(r"[/\\#?%:]")


def _project(name: str) -> str:
    found = _FORBIDDEN_IN_PROJECTS.search(name)
    if found or len(name) > 128:
        what = f"holds `{found[0]}`" if found else f"has {len(name)} characters"
        raise said(f"{what}; expected the name of a project, of at most 128 characters without / \\ # ? % :")
    return name


def _tag(tag: str) -> str:
    if len(tag) > 64:
        raise said(f"has {len(tag)} characters; expected a tag of at most 64")
    return tag


Project = Annotated[Text, AfterValidator(_project)]


class WandbSpec(Block):
    """Weights & Biases. What is not written is taken from WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE."""

    refused: ClassVar[dict[str, str]] = dict.fromkeys(("api_key", "key", "token", "password", "secret"), _LOGIN)

    project: Project | None = Field(None, description="the name of a project; the study's name unless written")
    entity: Text | None = Field(None, description="the user or team that the project belongs to")
    mode: Annotated[Literal["online", "offline"], choice("online", "offline")] | None = Field(
        None, description="online, or offline: a folder per run to upload later"
    )
    tags: list[Annotated[Text, AfterValidator(_tag)]] = Field(
        default_factory=list, description="a list of tags of at most 64 characters, for every run"
    )


class TrackioSpec(Block):
    """Trackio: a local database, no account."""

    project: Project | None = Field(None, description="the name of a project; the study's name unless written")


class TensorboardSpec(Block):
    """TensorBoard: event files in `track/tensorboard` of the results folder. It has no keys: `tensorboard: {}`."""


class TrackSpec(Block):
    """One tracker or several, each with its settings."""

    wandb: WandbSpec | None = Field(None, description="a mapping of project, entity, mode, tags")
    trackio: TrackioSpec | None = Field(None, description="a mapping of project")
    tensorboard: TensorboardSpec | None = Field(None, description="an empty mapping, {}")

    @model_validator(mode="before")
    @classmethod
    def _names_one(cls, value: Any) -> Any:
        if value == {}:
            raise said("is empty; expected a mapping of at least one of wandb, trackio, tensorboard")
        return value


TrackerName = Annotated[
    Literal["none", "wandb", "trackio", "tensorboard"], choice("none", "wandb", "trackio", "tensorboard"), TEXT
]
Tracking = Annotated[TrackerName | Annotated[TrackSpec, MAPPING], TEXT_OR_MAPPING]
