"""`track/sent/<destination>/`: what a tracker was given, run by run, and how its writer stands.

The metrics and evaluations are the record; this says only how far they were handed on, so that nothing is sent twice.
One process writes it at a time: the one that holds the results folder, or its follower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.store.atomic import write_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, read_marked

SCHEMA = 1


@dataclass(frozen=True)
class Sent:
    """What one run of a tracker was given, written when the run was closed with all that there was to send.

    seal: a digest of what that was; where the folder holds more (or other weights) now, it is another. tokens: of its
    newest row of training, of the path. scored: point → metric → value. next: the index of its next row.
    """

    seal: str = ""
    tokens: int = 0
    scored: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    next: int = 0


@dataclass(frozen=True)
class Standing:
    """How a tracker stands. tracker: in words. sent: runs (and segments) that it has whole, of those begun.

    problem: why nothing can be sent now, None when all is well.
    """

    tracker: str
    sent: int
    of: int
    problem: str | None = None

    @property
    def line(self) -> str:
        """What a person reads of it."""
        said = f"{self.tracker}: {self.sent} of {self.of} runs sent"
        return said if self.problem is None else f"{said}; {self.problem}"


def read_sent(folder: Folder, destination: str, run: str) -> Sent:
    """What the run was given; nothing where no record is, or a damaged one (trackers pass over what they hold)."""
    value = _read(folder, destination, run)
    try:
        return Sent(str(value["seal"]), int(value["tokens"]), dict(value["scored"]), int(value["next"]))
    except (KeyError, TypeError, ValueError):
        return Sent()


def _read(folder: Folder, destination: str, run: str) -> dict[str, Any]:
    try:
        return read_marked(folder.sent(destination, run), SCHEMA)
    except (FileNotFoundError, Damaged):
        return {}


def write_sent(folder: Folder, destination: str, run: str, name: str, sent: Sent) -> None:
    """Record what the run was given. name: for people."""
    write_json(folder.sent(destination, run), {"schema": SCHEMA, "id": run, "name": name, **asdict(sent)})


def write_standing(folder: Folder, destination: str, standing: Standing) -> None:
    write_json(folder.track_status(destination), {"schema": SCHEMA, **asdict(standing)})


def read_standings(folder: Folder) -> list[Standing]:
    """How each tracker that the folder was ever sent to stands, in name order."""
    found = []
    for path in sorted((folder.track / "sent").glob("*.json")):
        try:
            value = read_marked(path, SCHEMA)
            fields = {name: value[name] for name in ("tracker", "sent", "of", "problem")}
        except (FileNotFoundError, Damaged, KeyError):
            continue
        found.append(Standing(**fields))
    return found
