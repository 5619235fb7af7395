"""`ablate logs`: what the work on a run has printed, attempt by attempt, and what is printed from now on.

In Slurm also what its jobs have printed around the work: all that there is of one that died before its first word.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TextIO

from harness.launch.status import read_plan
from harness.launch.streams import STREAMS, pending
from harness.store import attempts, submissions
from harness.store.layout import Folder, StateFolder, SubmissionFolder
from harness.study.errors import UserError, nearest

FOLLOW_SECONDS = 0.5
File = tuple[int, int]  # device and inode


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
    tasks = _Tasks(folder, {state.id for state in states})
    shown: dict[File, int] = {}
    last: File | None = None
    while True:
        for title, path in [*(found for state in states for found in _streams(state)), *tasks.streams()]:
            content, file = _news(path, shown)
            if content:
                print(f"==> {title} <==", file=out) if file != last else None
                last = file
                print(content.decode(errors="replace"), end="", file=out, flush=True)
        if not follow:
            if not shown:
                print(f"nothing was printed by {run} yet", file=out)
            return
        time.sleep(FOLLOW_SECONDS)
        if not folder.root.is_dir():
            raise UserError(f"{folder.root} is gone: it was moved or removed.")


def _news(path: Path, shown: dict[File, int]) -> tuple[bytes, File | None]:
    """What a file holds beyond what was shown of it, and which file it is: it is moved into the folder of its attempt
    when that has ended. Nothing where it is gone."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            name = (status.st_dev, status.st_ino)
            before = shown.get(name, 0)
            file.seek(before if before <= status.st_size else 0)  # begun anew by the next try
            content = file.read()
            if content:
                shown[name] = file.tell()
            return content, name
    except FileNotFoundError:
        return b"", None


class _Tasks:
    """The tasks in Slurm that have worked, or were to work, on states."""

    def __init__(self, folder: Folder, states: Set[str]) -> None:
        self._folder = folder
        self._states = states
        self._found: dict[int, list[int | None]] = {}  # by submission, read once

    def streams(self) -> Iterator[tuple[str, Path]]:
        """Title and file of what each has printed itself, in order."""
        for place in self._folder.all_submissions():
            job = submissions.read_job(place)
            for index in () if job is None else self._of(place):
                word = str(job) if index is None else f"{job}_{index}"
                for path in place.printed(word):
                    yield f"job {word}, {'stderr' if path.suffix == '.err' else 'stdout'}", path

    def _of(self, place: SubmissionFolder) -> list[int | None]:
        """Indices of the tasks in their array; None for a job alone."""
        if place.number not in self._found:
            intent = submissions.read_intent(place)
            self._found[place.number] = [
                index if intent is not None and intent.array else None
                for index, element in enumerate(submissions.read_elements(place))
                if self._states & {item["state"] for item in element.items}
            ]
        return self._found[place.number]


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
