"""Trackio: a local database (TRACKIO_DIR), no account. A run is written once, when it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import trackio

from harness.track.settings import Target
from harness.track.tracker import EVAL_TOKENS, TOKENS, OpenRun, Row, TrackedRun


class TrackioTracker:
    """Runs of one Trackio project. Trackio has one open run a process and knows runs by name alone."""

    live = False

    def __init__(self, target: Target) -> None:
        assert target.project is not None
        self._project = target.project

    def open(self, run: TrackedRun) -> OpenRun:
        name = run.name if run.group == self._project else f"{run.group}/{run.name}"
        with contextlib.suppress(ValueError):  # a project that is not there yet
            for old in trackio.Api().runs(self._project):
                if old.name == name:
                    old.delete()
        config = {"kind": run.kind, "tags": ", ".join(run.tags), "id": run.id, **run.config}
        return _Run(
            trackio.init(
                project=self._project,
                name=name,
                group=run.group,
                config=config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        )


class _Run:
    held = 0

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, row: Row) -> None:
        step = EVAL_TOKENS if row.scores else TOKENS
        self._run.log({step: row.tokens, **row.values}, step=row.index)

    def flush(self) -> None:
        """Trackio writes by itself."""

    def close(self, summary: Mapping[str, Any], ended: bool) -> None:
        """The summary's numbers are in the rows; Trackio keeps none."""
        self._run.finish()

    def abandon(self) -> None:
        try:
            self._run.finish()
        except Exception:
            return
