"""Studies for the cluster: with the stub trainer, whose work takes no time, and with the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.launch import run
from harness.launch.progress import Silent
from harness.launch.run import Options, Report
from harness.launch.slurm import client
from harness.launch.status import status
from harness.store import states
from harness.store.atomic import read_json, read_json_lines, write_json
from harness.store.layout import Folder
from tests.launch.conftest import TINY
from tests.slurm.cluster import Cluster

STUB = "stub_work:perform"
CPU = "launch: {device: cpu}\n"


class Notes(Silent):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write(folder: Path, launch: str = CPU, seeds: str = "[1, 2]", more: str = "", values: str = "[0, 0.3]") -> Path:
    """A study of three arms (as many as `values`, and the default), evaluated nowhere."""
    path = folder / "tiny.yaml"
    text = TINY.replace("data: [1, 2]", f"data: {seeds}").replace("values: [0, 0.3]", f"values: {values}")
    path.write_text(text + "compare: {control: more=0}\n" + launch + more)
    return path


def submit(study: Path, **changes: Any) -> tuple[Report, list[str]]:
    """`ablate run --executor slurm` with the stub, unless told otherwise."""
    notes = Notes()
    asked = Options(study, study.parent / "results", executor="slurm", perform=STUB)
    return run.run(replace(asked, **changes), notes), notes.notes


def behave(folder: Folder, behaviour: Mapping[str, Mapping[str, Any]]) -> None:
    """How the stub shall do the last segments of runs, by their names."""
    folder.root.mkdir(exist_ok=True)
    write_json(folder.root / "behaviour.json", behaviour)


def starts(folder: Folder) -> Counter[str]:
    """How often each item was begun."""
    lines = read_json_lines(folder.root / "log.jsonl")
    return Counter(line["id"] for line in lines if line["what"] == "start")


def last_state(folder: Folder, name: str) -> str:
    found: str = read_json(folder.run_json(*name.split("/")))["path"][-1]
    return found


def is_done(folder: Folder, state: str) -> bool:
    return states.read_done(folder.state(state)) is not None


def queue() -> client.Queue:
    """All tasks of this user."""
    return client.look(Folder("a folder that is not there"))


def in_queue() -> int:
    """Tasks in the queue."""
    return sum(row.active for row in queue().tasks.values())


def ends(report: Report) -> dict[str, str]:
    return {run.run: run.end for run in report.ended.runs}


def ablate(
    *arguments: str | Path, code: int | None = 0, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """The command in a process of its own; its whole output."""
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert code is None or done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def finished(cluster: Cluster, seconds: float = 90) -> None:
    cluster.wait_for(lambda: in_queue() == 0, "an empty queue", seconds)


def words(folder: Folder) -> dict[str, str]:
    """What `ablate status` says of each run."""
    return {run.name: run.state for run in status(folder)}


def shim(patch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    """Put a script of sh in front of a program of Slurm; `$REAL` is the program."""
    real = shutil.which(name)
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    (folder / name).chmod(0o755)
    patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
