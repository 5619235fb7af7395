"""Which trackers a study has, and with what settings: the study first, then the environment, then a default."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.study.errors import UserError, nearest
from harness.track import LOGIN, NONE, TRACKERS, WANDB_SERVER, install_command, installed, logged_in

if TYPE_CHECKING:
    from harness.study.schema.tracking import TrackSpec

OFFLINE = ("offline", "dryrun")
OFF = "disabled"
MODES = ("online", "run", "shared", *OFFLINE, OFF)
Declared = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """Where one tracker's runs go. Holds no key.

    project: None for trackers without projects. server: of W&B. tags: for every run.
    factory: `module:function` that makes the tracker, where it is none of ours (for tests).
    """

    name: str
    project: str | None = None
    entity: str | None = None
    offline: bool = False
    server: str | None = None
    tags: tuple[str, ...] = ()
    factory: str | None = None

    @property
    def destination(self) -> str:
        """A name for the place: what was sent to one place says nothing of another."""
        if self.name == "wandb" and self.offline:
            return "wandb-offline"
        where = [self.server, self.entity, self.project]
        if where == [None, None, None]:
            return self.name
        return f"{self.name}-{hashlib.sha256(json.dumps(where).encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        if self.name == "wandb" and self.offline:
            return "wandb (offline)"
        return self.name

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Target:
        return cls(**{**value, "tags": tuple(value["tags"])})


def declared(track: str | TrackSpec) -> dict[str, dict[str, Any]]:
    """The trackers of a study as plan.json keeps them: name → what was written of it."""
    if isinstance(track, str):
        return {} if track == NONE else {track: {}}
    return {
        name: {key: value for key, value in settings.items() if value not in (None, [])}
        for name, settings in track.model_dump(mode="json").items()
        if settings is not None
    }


def targets(
    trackers: Declared, study: str, environment: Mapping[str, str] = os.environ
) -> tuple[list[Target], list[str]]:
    """The targets of a study, and a line for each thing that a person should know of them.

    The study wins over WANDB_PROJECT, WANDB_ENTITY and WANDB_MODE, and the difference is said. Raises UserError for a
    mode that W&B does not have: it may have been meant to keep the runs here.
    """
    found: list[Target] = []
    said: list[str] = []
    for name, settings in trackers.items():
        project = str(settings.get("project") or study)
        if name == "wandb":
            target = _wandb(settings, study, environment, said)
            found += [] if target is None else [target]
        else:
            found.append(Target(name, project if name == "trackio" else None))
    return found, said


def _wandb(settings: Mapping[str, Any], study: str, environment: Mapping[str, str], said: list[str]) -> Target | None:
    values: dict[str, str | None] = {}
    for key in ("project", "entity", "mode"):
        variable = f"WANDB_{key.upper()}"
        written, here = settings.get(key), environment.get(variable) or None
        values[key] = written or here
        if written and here and written != here:
            said.append(f"wandb: the study's {key} `{written}` is used, not {variable}={here}")
    mode = values["mode"] or "online"
    if mode not in MODES:
        raise UserError(f"WANDB_MODE={mode} is no mode of W&B; {nearest(mode, MODES)}")
    if mode == OFF:
        said.append("wandb: WANDB_MODE=disabled, so nothing is sent; `ablate sync` can send it later")
        return None
    offline = mode in OFFLINE
    if not offline and installed("wandb") and not logged_in(environment):
        said.append(f"wandb: not logged in, so nothing is sent; {LOGIN}, then `ablate sync`")
    server = (environment.get("WANDB_BASE_URL") or WANDB_SERVER).rstrip("/")
    project = values["project"] or study
    return Target("wandb", project, values["entity"], offline, server, tuple(settings.get("tags", ())))


def check_installed(found: Sequence[Target]) -> None:
    """Raise UserError when the package of a tracker is missing."""
    for target in found:
        if target.factory is None and not installed(target.name):
            raise UserError(
                f"`track: {target.name}` needs the package {target.name}, which is not installed: "
                f"{install_command(target.name)}, or `--set track=none` and `ablate sync` later."
            )


def named(name: str, trackers: Declared) -> Declared:
    """The tracker called `name` with what a study says of it, if anything. Raises UserError."""
    if name not in TRACKERS:
        raise UserError(f"`{name}` is not a tracker; {nearest(name, TRACKERS)}")
    return {name: trackers.get(name, {})}
