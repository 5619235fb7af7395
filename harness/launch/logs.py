"""`ablate logs`: what the work on a run has printed, attempt by attempt, and what is printed from now on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness.launch.status import read_plan
from harness.launch.streams import STREAMS, pending
from harness.store import attempts
from harness.store.layout import Folder, StateFolder
from harness.study.errors import UserError, nearest

FOLLOW_SECONDS = 0.5


def states_of(folder: Folder, run: str) -> list[StateFolder]:
    """The base and the segments of a run's path. Raises UserError for a run that is not in the plan."""
    plan = read_plan(folder)
    for planned in plan["runs"]:
        if planned["name"] == run:
            known = (None, *planned["path"])
            merges = [point["segment"] for point in planned["points"] if point["segment"] not in known]
            return [folder.state(name) for name in (planned["base"], *planned["path"], *merges)]
    raise UserError(f"{folder.root} has no run `{run}`; {nearest(run, [p['name'] for p in plan['runs']])}")


def show(folder: Folder, run: str, out: TextIO, follow: bool) -> None:
    """Print every stream of the run's path that is not empty, under its name; with `follow`, go on for ever."""
    states = states_of(folder, run)
    shown: dict[Path, int] = {}
    last: Path | None = None
    while True:
        for title, path in [found for state in states for found in _streams(state)]:
            content = path.read_bytes()[shown.get(path, 0) :]
            if content:
                shown[path] = shown.get(path, 0) + len(content)
                print(f"==> {title} <==", file=out) if path != last else None
                last = path
                print(content.decode(errors="replace"), end="", file=out, flush=True)
        if not follow:
            if not shown:
                print(f"nothing was printed by {run} yet", file=out)
            return
        time.sleep(FOLLOW_SECONDS)


def _streams(state: StateFolder) -> Iterator[tuple[str, Path]]:
    """Title and file of every stream that is there, attempts in order, evaluation last."""
    for number in state.attempt_numbers():
        ended = attempts.read_exit(state, number)
        how = "" if ended is None else f", {ended['outcome']}"
        for stream in STREAMS:
            path = state.attempt(number) / stream
            if path.exists():
                yield f"{state.id[:12]} attempt {number}{how}, {stream}", path
    for kind in ("base", "train", "merge", "evaluate"):
        for stream in STREAMS:
            path = pending(state, kind, stream)
            if path.exists():
                yield f"{state.id[:12]} {kind}, {stream}", path
