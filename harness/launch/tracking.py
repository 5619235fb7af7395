"""Starts and ends the processes that hand a results folder on to trackers; nothing of theirs stops the work."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness.launch import code
from harness.launch.lock import locked
from harness.launch.status import read_plan
from harness.store.atomic import WriteFailed, writing
from harness.store.layout import Folder
from harness.store.tracking import Standing, write_standing
from harness.study.errors import UserError
from harness.track.sender import senders
from harness.track.settings import Target, check_installed, declared, named, targets
from harness.track.tracker import TrackerDown

if TYPE_CHECKING:
    from harness.study import Study

TELL_SECONDS = 5.0  # between two records of how far a tracker is, for `ablate status`
PATIENCE_SECONDS = 120.0  # without news from a process that sends the rest; then it is ended

Note = Callable[[str], None]


def targets_here(study: Study, note: Note) -> list[Target]:
    """The trackers of a study. Raises UserError when a package is missing: before anything is spent."""
    found, said = targets(declared(study.spec.track), study.spec.study)
    check_installed(found)
    for line in said:
        note(line)
    return found


@contextlib.contextmanager
def following(folder: Folder, trackers: Sequence[Target], note: Note) -> Iterator[None]:
    """Hand the folder on while the body works in it, and what is left after it. The caller holds the folder.

    What goes wrong with a tracker is a note, never an error.
    """
    left = [target for target in trackers if not _whole(folder, target)]
    if not left:
        yield
        return
    follower = Follower(folder, left, note, told=lambda standings: _record(folder, left, standings))
    try:
        yield
    finally:
        follower.finish()
        _record(folder, left, follower.standings)
        for standing in follower.standings:
            if standing.problem is not None or standing.sent < standing.of:
                note(f"{standing.line}; `ablate sync {folder.root}` sends what is left")


def sync(
    root: Path, to: str | None, jobs: int, note: Note, wait: bool = False, environment: Mapping[str, str] = os.environ
) -> list[Standing]:
    """Send what a results folder has and its trackers have not, in `jobs` processes; W&B always online.

    to: a tracker, for a folder whose study names another or none. Raises UserError.
    """
    folder = Folder(root)
    plan = read_plan(folder)
    trackers = plan.get("track") or {}
    if to is not None:
        trackers = named(to, trackers)
    if not trackers:
        raise UserError(f"the study of {root} tracks nothing (`track: none`); `--to wandb` names a tracker.")
    online = {name: value for name, value in environment.items() if name != "WANDB_MODE"}
    found, said = targets(trackers, str(plan["study"]), online)
    found = [replace(target, offline=False) for target in found]
    check_installed(found)
    for line in said:
        note(line)
    with locked(folder, wait, note):
        return send(folder, found, jobs, note)


def send(folder: Folder, trackers: Sequence[Target], jobs: int, note: Note) -> list[Standing]:
    """What `sync` does once it holds the folder."""
    left = [target for target in trackers if not _whole(folder, target)]
    parts = [Follower(folder, left, note, (number, jobs)) for number in range(jobs)] if left else []
    for part in parts:
        part.finish()
    together = [_joined(target, [part.standings[at] for part in parts]) for at, target in enumerate(left)]
    _record(folder, left, together)
    whole = [_standing(folder, target) for target in trackers if target not in left]
    return [*whole, *together]


def _joined(target: Target, parts: Sequence[Standing]) -> Standing:
    problem = next((part.problem for part in parts if part.problem is not None), None)
    return Standing(str(target), sum(part.sent for part in parts), sum(part.of for part in parts), problem)


def _whole(folder: Folder, target: Target) -> bool:
    """Whether the tracker has all that there is."""
    standing = _standing(folder, target)
    return standing.sent == standing.of


def _standing(folder: Folder, target: Target, part: tuple[int, int] = (0, 1)) -> Standing:
    def never(target: Target) -> Any:
        raise TrackerDown("not asked")

    return senders(folder, read_plan(folder), [target], never, part)[0].standing


def _record(folder: Folder, trackers: Sequence[Target], standings: Sequence[Standing]) -> None:
    with contextlib.suppress(WriteFailed):  # a full disk: what is sent is known run by run
        for target, standing in zip(trackers, standings, strict=True):
            write_standing(folder, target.destination, standing)


class Follower:
    """A process that sends, and how far it is. standings: one a target. told: called with them now and then."""

    def __init__(
        self,
        folder: Folder,
        trackers: Sequence[Target],
        note: Note,
        part: tuple[int, int] = (0, 1),
        told: Callable[[Sequence[Standing]], None] = lambda standings: None,
    ) -> None:
        self.standings = [_standing(folder, target, part) for target in trackers]
        self._note = note
        self._told = told
        self._told_at = 0.0
        self._news = time.monotonic()
        self._said: set[str] = set()
        order = {"folder": str(folder.root), "targets": [target.to_json() for target in trackers], "part": part}
        with writing(folder.track):
            folder.track.mkdir(parents=True, exist_ok=True)
            self._log = (folder.track / "log.txt").open("ab")
        self._process = _start(self._log)
        with contextlib.suppress(OSError):
            _stdin(self._process).write((json.dumps(order) + "\n").encode())
            _stdin(self._process).flush()
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def finish(self) -> None:
        """Let it send what is left; a process from which nothing is heard is ended."""
        with contextlib.suppress(OSError):
            _stdin(self._process).close()
        self._news = time.monotonic()
        while self._process.poll() is None:
            if time.monotonic() - self._news > PATIENCE_SECONDS:
                self._process.kill()
                self._blame(f"nothing was heard of it for {PATIENCE_SECONDS:.0f} s, so it was left")
            self._listening.join(0.05)
            if not self._listening.is_alive():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.5)
        self._listening.join()
        self._log.close()
        if self._process.returncode > 0:
            self._blame("its process failed, see track/log.txt")

    def _blame(self, why: str) -> None:
        """Say of every tracker that is not whole why it is not, where it has not said so itself."""
        self.standings = [
            replace(standing, problem=why) if standing.sent < standing.of and standing.problem is None else standing
            for standing in self.standings
        ]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self.standings = [Standing(**value) for value in json.loads(line)["standings"]]
                self._news = time.monotonic()
                if self._news > self._told_at + TELL_SECONDS:
                    self._told_at = self._news
                    self._told(self.standings)
                for standing in self.standings:
                    if standing.problem is not None and standing.tracker not in self._said:
                        self._said.add(standing.tracker)
                        self._note(f"{standing.tracker}: {standing.problem}; the work goes on without it")


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C in a terminal is for the work, which then ends it."""
    return subprocess.Popen(
        code.command("harness.track.follow"),
        env=code.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
