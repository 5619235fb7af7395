"""Attempts: one try at a segment, numbered; the newest owns the state.

Beginning an attempt makes the folder `attempts/<k>` (mkdir is the claim: two processes cannot make the same one).
Before it writes a checkpoint an attempt asks whether a newer one has begun, and stops if so: a process that outlived
its node's death can never replace what came after it. While it lasts, a pulse (`attempts/<k>/pulse`) says that its
process lives; see `processes` for who counts as dead when.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store import processes
from harness.store.atomic import append_json_line, read_json_lines, write_json, writing
from harness.store.layout import StateFolder
from harness.store.markers import Damaged, read_marked
from harness.store.processes import Observer, Pulse
from harness.store.processes import identity as process_identity
from harness.study.errors import UserError

SCHEMA = 1
PULSE = "pulse"

_pulses: dict[Path, Pulse] = {}  # of the attempts that this process has begun


class Fenced(Exception):
    """A newer attempt at this state has begun; this one must stop and write nothing more."""


@dataclass(frozen=True)
class Attempt:
    """A try at a state, owned by this process."""

    state: StateFolder
    number: int

    @property
    def folder(self) -> Path:
        return self.state.attempt(self.number)

    def check_owner(self) -> None:
        """Raise Fenced when a newer attempt exists, and UserError when this one's record is gone: whoever removed or
        moved the folder wants nothing more written in its place."""
        if not (self.folder / "env.json").exists():
            raise UserError(
                f"{self.folder} is gone: the results folder was moved or removed while it was worked in. `ablate run "
                "STUDY.yaml -o DIR` goes on with it where it is now."
            )
        newest = self.state.attempt_numbers()[-1]
        if newest > self.number:
            raise Fenced(f"attempt {newest} of {self.state.id} has begun; attempt {self.number} stops")

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to the state's events."""
        line = {"time": round(time.time(), 3), "attempt": self.number, "kind": kind, **fields}
        append_json_line(self.state.events, line)

    def finish(self, outcome: str, **fields: Any) -> None:
        """Record how the attempt ended. An attempt without this file was killed, or is still at work."""
        pulse = _pulses.pop(self.folder, None)
        if pulse is not None:
            pulse.stop()
        write_json(self.folder / "exit.json", {"schema": SCHEMA, "outcome": outcome, "time": time.time(), **fields})

    def failed(self, error: str) -> None:
        """Record a failure as far as that can be written: a full disk must not hide what went wrong first."""
        with contextlib.suppress(OSError, UserError):
            self.event("failed", error=error)
        with contextlib.suppress(OSError, UserError):
            self.finish("failed", error=error)


def begin(state: StateFolder, env: Mapping[str, Any]) -> Attempt:
    """Claim the next attempt at `state` and record where it runs: `env` (numerics, code) with user, host and process.

    Raises WriteFailed; then nothing was claimed.
    """
    with writing(state.attempts):
        state.attempts.mkdir(parents=True, exist_ok=True)
        while True:
            number = (state.attempt_numbers() or [-1])[-1] + 1
            try:
                state.attempt(number).mkdir()
            except FileExistsError:
                continue
            break
    attempt = Attempt(state, number)
    try:
        write_json(attempt.folder / "env.json", {"schema": SCHEMA, **process_identity(), **env})
        with writing(attempt.folder / PULSE):
            _pulses[attempt.folder] = Pulse(attempt.folder / PULSE, watched=attempt.folder / "metrics.jsonl")
    except BaseException:
        shutil.rmtree(attempt.folder, ignore_errors=True)
        raise
    return attempt


def living_attempt(state: StateFolder, observer: Observer | None = None) -> dict[str, Any] | None:
    """The env of the newest attempt if another process is at work on it, else None.

    observer: keeps what was seen of the pulses of processes whose life cannot be told from here; ask again and again
    with the same one. Without, such a process counts as alive.
    """
    numbers = state.attempt_numbers()
    if not numbers:
        return None
    folder = state.attempt(numbers[-1])
    if (folder / "exit.json").exists():
        return None
    try:
        env = read_marked(folder / "env.json", SCHEMA)
    except (FileNotFoundError, Damaged):
        return None  # its process died between the claim and its record
    if processes.here(env):
        return None
    lives = (observer or Observer()).alive(str(folder), env, processes.read_pulse(folder / PULSE))
    return env if lives else None


def read_events(state: StateFolder) -> list[dict[str, Any]]:
    """All events of a state in the order written."""
    return read_json_lines(state.events)


def read_env(state: StateFolder, number: int) -> dict[str, Any] | None:
    """Where and how an attempt ran; None when its record is missing or torn."""
    return _read(state.attempt(number) / "env.json")


def read_exit(state: StateFolder, number: int) -> dict[str, Any] | None:
    """How an attempt ended; None when it was killed or is still at work."""
    return _read(state.attempt(number) / "exit.json")


def read_pulse(state: StateFolder, number: int) -> bytes:
    """The pulse of an attempt as it stands, empty when it has none."""
    return processes.read_pulse(state.attempt(number) / PULSE)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_marked(path, SCHEMA)
    except (FileNotFoundError, Damaged):
        return None
