"""Attempts: one try at a segment, numbered; the newest owns the state.

Beginning an attempt makes the folder `attempts/<k>` (mkdir is the claim: two processes cannot make the same one).
Before it writes a checkpoint an attempt asks whether a newer one has begun, and stops if so: a process that outlived
its node's death can never replace what came after it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.atomic import append_json_line, read_json, read_json_lines, write_json
from harness.store.layout import StateFolder

SCHEMA = 1


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
        """Raise Fenced when a newer attempt exists."""
        newest = self.state.attempt_numbers()[-1]
        if newest > self.number:
            raise Fenced(f"attempt {newest} of {self.state.id} has begun; attempt {self.number} stops")

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to the state's events."""
        line = {"time": round(time.time(), 3), "attempt": self.number, "kind": kind, **fields}
        append_json_line(self.state.events, line)

    def finish(self, outcome: str, **fields: Any) -> None:
        """Record how the attempt ended. An attempt without this file was killed, or is still at work."""
        write_json(self.folder / "exit.json", {"schema": SCHEMA, "outcome": outcome, "time": time.time(), **fields})


def begin(state: StateFolder, env: Mapping[str, Any]) -> Attempt:
    """Claim the next attempt at `state` and record where it runs: `env` (numerics, code) with host and process."""
    state.attempts.mkdir(parents=True, exist_ok=True)
    while True:
        number = (state.attempt_numbers() or [-1])[-1] + 1
        try:
            state.attempt(number).mkdir()
        except FileExistsError:
            continue
        break
    attempt = Attempt(state, number)
    write_json(attempt.folder / "env.json", {"schema": SCHEMA, **process_identity(), **env})
    return attempt


def process_identity() -> dict[str, Any]:
    """Host, process and its start: enough to tell later whether that very process is still alive."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_start(os.getpid())}


def process_start(pid: int) -> int | None:
    """When a process began, in the kernel's clock ticks since boot; None when there is no such process at work."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie is dead: nobody has collected it yet


def living_attempt(state: StateFolder) -> dict[str, Any] | None:
    """The env of the newest attempt if its process is alive on this host and it has not finished, else None."""
    numbers = state.attempt_numbers()
    if not numbers:
        return None
    folder = state.attempt(numbers[-1])
    if (folder / "exit.json").exists():
        return None
    try:
        env: dict[str, Any] = read_json(folder / "env.json")
    except (OSError, ValueError):
        return None  # its process died between the claim and its record
    if env.get("host") != socket.gethostname() or env.get("pid") == os.getpid():
        return None
    alive = process_start(int(env["pid"]))
    return env if alive is not None and alive == env.get("started") else None


def read_events(state: StateFolder) -> list[dict[str, Any]]:
    """All events of a state in the order written."""
    return read_json_lines(state.events)


def read_env(state: StateFolder, number: int) -> dict[str, Any] | None:
    """Where and how an attempt ran; None when its record is missing or torn."""
    try:
        env: dict[str, Any] = read_json(state.attempt(number) / "env.json")
    except (OSError, ValueError):
        return None
    return env


def read_exit(state: StateFolder, number: int) -> dict[str, Any] | None:
    """How an attempt ended; None when it was killed or is still at work."""
    try:
        value: dict[str, Any] = read_json(state.attempt(number) / "exit.json")
    except (OSError, ValueError):
        return None
    return value
