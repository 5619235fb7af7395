"""Studies with the real trainer on the cluster, and what is compared of them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from harness.store import attempts, states
from harness.store.atomic import read_json
from harness.store.layout import Folder, StateFolder
from tests.launch.conftest import TINY

SLOW = "slow_work:perform"
EVERY = 2560  # tokens between checkpoints: ten updates
LAUNCH = f"{{device: cpu, checkpoint_every: {EVERY}}}"


def write_real(folder: Path, launch: str = LAUNCH, seeds: str = "[1]", values: str = "[0]", more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    text = TINY.replace("data: [1, 2]", f"data: {seeds}").replace("values: [0, 0.3]", f"values: {values}")
    path.write_text(f"{text}compare: {{control: more=0}}\nlaunch: {launch}\n{more}")
    return path


def pace(folder: Folder, seconds: float) -> None:
    """Seconds between two updates, from now on."""
    (folder.root / "pause").write_text(str(seconds))


def copied(prepared: Path, to: Path, seconds: float) -> Folder:
    """A results folder that has been planned, with a pace."""
    shutil.copytree(prepared, to)
    folder = Folder(to)
    pace(folder, seconds)
    return folder


def weights(folder: Folder) -> dict[str, str]:
    """SHA-256 of the final weights of every run."""
    found = {}
    for run in read_json(folder.plan_json)["runs"]:
        done = states.verify_state(folder.state(run["path"][-1]))
        assert done is not None and done.weights is not None, run["name"]
        found[run["name"]] = done.weights
    return found


def trunk(folder: Folder) -> StateFolder:
    return folder.state(read_json(folder.plan_json)["runs"][0]["path"][0])


def newest(state: StateFolder) -> int:
    return states.newest_checkpoint(state) or 0


def attempts_of(state: StateFolder) -> list[dict[str, Any]]:
    """The beginnings of a state's attempts, in order."""
    return [event for event in attempts.read_events(state) if event["kind"] == "attempt_started"]


def lost_tokens(state: StateFolder) -> list[int]:
    """Path tokens that each attempt but the last had trained beyond where the one after it took up."""
    begins = attempts_of(state)
    lost = []
    for before, after in itertools.pairwise(begins):
        path = state.attempt(before["attempt"]) / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rows = [row for row in rows if row["time"] <= after["time"]]
        lost.append(max([row["tokens"] for row in rows], default=0) - after["tokens"])
    return lost
