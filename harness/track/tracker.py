"""What a tracker is: a small seam with one contract, tested by one suite for all of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.store.layout import Folder
from harness.track.settings import Target

TOKENS = "tokens"  # the step metric of training
EVAL_TOKENS = "eval_tokens"  # the step metric of scores: they come later than the updates around them


class TrackerDown(Exception):
    """The tracker cannot take anything now: no server, no login, no room. `str()` is one sentence."""


@dataclass(frozen=True)
class TrackedRun:
    """A run of the tracker's: one of the study's (arm, seeds), or a segment that several of them share.

    id: the same for the same science in the same study, wherever the results folder lies. name: `ARM/SEEDS`, or
    `segments/...`. group: the study. config: flat, what the arm declares first.
    """

    id: str
    name: str
    kind: Literal["run", "segment"]
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Values at a token of the path. index: its place in the run's history: the number of the update for a row of
    training, and above all of those for a row of scores, so that it is the same whoever sends it."""

    index: int
    tokens: int
    values: Mapping[str, float]
    scores: bool = False


class OpenRun(Protocol):
    """A run that takes rows. Anything that it raises means: not now, try again later.

    held: rows below this index are there already, from a process before.
    """

    held: int

    def log(self, row: Row) -> None:
        """Take a row. Rows come by ascending index, from `held` on."""

    def flush(self) -> None:
        """Hand on what was logged as far as that is in this process's hands."""

    def close(self, summary: Mapping[str, Any], ended: bool) -> None:
        """Log no more for now. summary: what stands beside the history, may be empty. ended: nothing is to come."""

    def abandon(self) -> None:
        """Let go after an error, without a word to the tracker. Raises nothing."""


class Tracker(Protocol):
    """Opens runs. live: takes rows while a run is trained; else a run is written once, when it has ended.

    Whatever ended the process that had a run open: whoever opens it again and logs its rows from `held` on makes it
    whole, with no row in it twice.
    """

    live: bool

    def open(self, run: TrackedRun) -> OpenRun:
        """Go on with a run where it is there, or write it anew. Returns or raises within a minute."""


def make_tracker(target: Target, folder: Folder, scratch: Path) -> Tracker:
    """The tracker of a target. Imports its package. scratch: a folder for what need not stay."""
    if target.factory is not None:
        module, _, function = target.factory.partition(":")
        made: Tracker = getattr(importlib.import_module(module), function)(target, folder, scratch)
        return made
    if target.name == "wandb":
        from harness.track.to_wandb import WandbTracker

        return WandbTracker(target, folder, scratch)
    if target.name == "trackio":
        from harness.track.to_trackio import TrackioTracker

        return TrackioTracker(target)
    from harness.track.to_tensorboard import TensorboardTracker

    return TensorboardTracker(folder)
