"""A queue that takes what is submitted and does nothing with it, for ticks without a Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.launch import run
from harness.launch.progress import Silent
from harness.launch.run import Options, Report
from harness.launch.slurm import bring, client
from harness.launch.slurm.client import Queue, Row
from harness.launch.slurm.submit import Submitter
from harness.store.layout import Folder
from harness.store.submissions import Intent

STUB = "stub_work:perform"


class FakeSlurm:
    """jobs: what waits in the queue, by id."""

    def __init__(self) -> None:
        self.jobs: dict[str, Intent] = {}
        self.intents: list[Intent] = []
        self.gone: dict[str, set[int]] = {}  # tasks that were cancelled, by job

    def sbatch(self, submitter: Submitter, place: Path, intent: Intent, array: str | None) -> str:
        self.intents.append(intent)
        self.jobs[str(len(self.intents))] = intent
        return str(len(self.intents))

    def look(self, folder: Folder) -> Queue:
        return Queue(
            [
                Row(job, index, intent.name, "PENDING", "Priority")
                for job, intent in self.jobs.items()
                for index in range(intent.count)
                if index not in self.gone.get(job, ())
            ]
        )

    def cancel(self, words: list[str]) -> None:
        for word in words:
            job, _, index = word.partition("_")
            tasks = self.gone.setdefault(job, set())
            tasks |= {int(index)} if index else set(range(self.jobs[job].count if job in self.jobs else 0))
            if job in self.jobs and len(tasks) == self.jobs[job].count:
                del self.jobs[job]

    def lose_everything(self) -> None:
        """Every job is gone and nobody knows how."""
        self.jobs.clear()


def fake_slurm(patch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm()
    patch.setattr(Submitter, "_sbatch", lambda self, place, intent, array: slurm.sbatch(self, place, intent, array))
    patch.setattr(bring, "clients_missing", list)
    patch.setattr(bring, "environment_without_slurm", dict)
    patch.setattr(client, "look", slurm.look)
    patch.setattr(client, "cancel", slurm.cancel)
    patch.setattr(client, "release", lambda jobs: None)
    patch.setattr(client, "accounted", lambda jobs, since: {})
    patch.setattr(client, "max_array_size", lambda: 1001)
    return slurm


def submit(study: Path, folder: Path | None = None, **changes: Any) -> Report:
    """`ablate run --executor slurm`."""
    options: dict[str, Any] = {"executor": "slurm", "perform": STUB, **changes}
    return run.run(Options(study, folder or study.parent / "results", **options), Silent())
