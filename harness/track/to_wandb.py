"""W&B. Online a run is sent while it is trained; offline its folder is written once, when the run has ended.

The dropped-step rule of W&B is what makes sending exact: it takes a step only above those it has, so the server's own
count says where a run goes on after whatever ended the process before. Offline there is no such count (a second process
with the same id makes a second folder), so an offline run is written whole, in one go, and replaces an older folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from harness.store.atomic import writing
from harness.store.layout import Folder
from harness.track import LOGIN, logged_in
from harness.track.settings import Target
from harness.track.tracker import EVAL_TOKENS, TOKENS, OpenRun, Row, TrackedRun, TrackerDown

INIT_SECONDS = 30.0
FINISH_SECONDS = 60.0  # to send what is left of a run when it is closed
# What a step metric belongs to; every other name is left as W&B has it.
TRAINING = ("train/*", "share/*", "epochs/*", "context")
SCORES = ("bpb/*", "eval/*", "ema/*")


class WandbTracker:
    """Runs of one W&B project. scratch: where online runs keep what they have not sent yet."""

    def __init__(self, target: Target, folder: Folder, scratch: Path) -> None:
        self._target = target
        self._root = folder.track / target.destination if target.offline else scratch
        self.live = not target.offline
        if self.live and not logged_in():
            raise TrackerDown(f"not logged in to W&B; {LOGIN}")

    def open(self, run: TrackedRun) -> OpenRun:
        with writing(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
        if self._target.offline:
            for old in (self._root / "wandb").glob(f"offline-run-*-{run.id}"):
                shutil.rmtree(old)
        try:
            opened = wandb.init(
                project=self._target.project,
                entity=self._target.entity,
                id=run.id,
                name=run.name,
                group=run.group,
                job_type=run.kind,
                tags=list(run.tags),
                config=dict(run.config),
                dir=self._root,
                mode="offline" if self._target.offline else "online",
                resume=None if self._target.offline else "allow",
                reinit="create_new",
                settings=_settings(self._target),
            )
        except wandb.errors.Error as error:
            raise TrackerDown(_sentence(error)) from error
        return _Run(opened)


def _settings(target: Target) -> wandb.Settings:
    """Quiet, and nothing of the machine, its programs or its code: what is sent is the projection."""
    return wandb.Settings(
        base_url=target.server,
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )


class _Run:
    """A run that is open in this process."""

    def __init__(self, run: wandb.Run) -> None:
        self._run = run
        self.held = int(run.starting_step)
        for name in (TOKENS, EVAL_TOKENS):
            run.define_metric(name, hidden=True)
        for names, step in ((TRAINING, TOKENS), (SCORES, EVAL_TOKENS)):
            for name in names:
                run.define_metric(name, step_metric=step)

    def log(self, row: Row) -> None:
        step = EVAL_TOKENS if row.scores else TOKENS
        self._run.log({step: row.tokens, **row.values}, step=row.index, commit=True)

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self, summary: Mapping[str, Any], ended: bool) -> None:
        self._run.summary.update(dict(summary))
        try:
            self._run.finish(exit_code=0 if ended else 1)
        except Exception as error:  # wandb's own timeout among them
            raise TrackerDown(_sentence(error)) from error

    def abandon(self) -> None:
        try:
            self._run.finish(exit_code=1)
        except Exception:
            return


def _sentence(error: Exception) -> str:
    """The first sentence of what W&B says, in one line."""
    text = " ".join(str(error).split())
    return f"W&B: {text[:300]}" if text else f"W&B: {type(error).__name__}"
