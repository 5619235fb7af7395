"""`ablate gc`: what of a results folder nothing needs any more, with its bytes, and its removal when a person says so.

    orphan      a state that the study does not name any more, and no state of the study starts from
    checkpoint  inside a finished segment, where `keep` does not hold on to it (any more)
    leftover    what a killed process was writing, and what was set aside and has been made again
    snapshot    the harness's code of earlier submissions, when no job is in the queue

A segment with a child that is not finished is never touched, nor one that a process or a job in the queue is at work
on. Scores, metrics of the study's states and the report always stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from harness.launch.code import SNAPSHOT
from harness.launch.slurm.standing import standings
from harness.launch.status import read_plan
from harness.store import attempts, states, submissions
from harness.store.atomic import readable_bytes
from harness.store.kept import multiples
from harness.store.layout import Folder, StateFolder
from harness.store.markers import MARKER, Damaged
from harness.study.errors import UserError

Kind = Literal["orphan", "checkpoint", "leftover", "snapshot"]


@dataclass(frozen=True)
class Waste:
    """One folder or file that may go."""

    kind: Kind
    path: Path
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What may go from a results folder. spared: orphans that stay, and why, as (state, reason)."""

    folder: Folder
    found: tuple[Waste, ...]
    spared: tuple[tuple[str, str], ...]

    @property
    def bytes(self) -> int:
        return sum(waste.bytes for waste in self.found)

    def text(self, remove: bool = False) -> str:
        """A line for each kind, and what to do next. remove: it is about to be removed."""
        if not self.found:
            lines = ["nothing to remove"]
        else:
            kinds = dict.fromkeys(waste.kind for waste in self.found)
            lines = [self._line(kind) for kind in kinds]
            total = readable_bytes(self.bytes)
            how = "are removed" if remove else f"; `ablate gc {self.folder.root} --yes` removes them"
            lines.append(f"{total} {how}" if remove else f"{total}{how}")
        return "\n".join([*lines, *(f"{name[:12]} stays: {why}" for name, why in self.spared)])

    def _line(self, kind: Kind) -> str:
        own = [waste for waste in self.found if waste.kind == kind]
        return f"{kind:<10}  {len(own):>5}  {readable_bytes(sum(waste.bytes for waste in own)):>8}"

    def to_json(self, removed: bool = False) -> dict[str, Any]:
        return {
            "removed": removed,
            "bytes": self.bytes,
            "found": [
                {"kind": one.kind, "path": str(one.path.relative_to(self.folder.root)), "bytes": one.bytes}
                for one in self.found
            ],
            "spared": [{"state": name, "why": why} for name, why in self.spared],
        }


def garbage(folder: Folder) -> Garbage:
    """What may go. The caller holds the folder's lock where it means to remove it. Raises UserError where Slurm has
    jobs of the study and does not answer."""
    plan = read_plan(folder)
    queued = _queued(folder, plan)
    there = {state.id: state for state in folder.all_states()}
    parents = {name: _parents(state) for name, state in there.items()}
    wanted = _wanted(plan, parents)
    busy = {name for name, state in there.items() if name in queued or attempts.living_attempt(state) is not None}
    finished = {name for name, state in there.items() if _finished(state)}
    needed = {parent for name in there if name not in finished for parent in parents[name]}
    for run in plan["runs"]:
        needed |= {before for before, after in pairwise([run["base"], *run["path"]]) if after not in finished}
    found: list[Waste] = []
    spared: list[tuple[str, str]] = []
    for name, state in there.items():
        why = "a job or a process is at work on it" if name in busy else "a state that starts from it is not finished"
        if name in busy or (name in needed and name not in wanted):
            spared += [(name, why)] if name not in wanted else []
        elif name not in wanted:
            found.append(_waste("orphan", state.root))
        else:
            found += _inside(state, plan.get("keep", "all"), name in needed)
    if not queued and not busy:
        found += [_waste("snapshot", path) for path in _old_snapshots(folder)]
    return Garbage(folder, tuple(found), tuple(spared))


def collect(garbage: Garbage) -> None:
    """Remove it. What makes a thing count as there goes first, so that a kill leaves no half that looks whole."""
    for waste in garbage.found:
        for marker in (MARKER, SNAPSHOT):
            (waste.path / marker).unlink(missing_ok=True)
        shutil.rmtree(waste.path, ignore_errors=False)


def _inside(state: StateFolder, keep: int | str, needed: bool) -> Iterator[Waste]:
    """What may go of a state that the study has."""
    for place in (state.root, state.checkpoints):
        if place.is_dir():
            yield from (_waste("leftover", path) for path in sorted(place.glob(".*.tmp")) if path.is_dir())
    try:
        done = states.verify_state(state, contents=False)
    except Damaged:
        return
    if done is None:
        return
    if state.before.exists():
        yield _waste("leftover", state.before)
    if needed or keep == "all" or done.checkpoint is None:
        return
    inside = [tokens for tokens in state.checkpoint_tokens() if tokens != int(done.checkpoint)]
    held = multiples(states.read_segment(state).get("pieces", ()), inside, keep)
    yield from (_waste("checkpoint", state.checkpoint(tokens)) for tokens in inside if tokens not in held)


def _queued(folder: Folder, plan: Mapping[str, Any]) -> set[str]:
    """States that jobs in the queue are to make or to evaluate."""
    found = standings(folder, plan)
    if found is None or (shutil.which("squeue") is None and _all_left(folder)):
        return set()
    if found.problem is not None:
        raise UserError(
            f"{found.problem} Without an answer nothing is known of the jobs that may still be in the queue."
        )
    return {item.partition(":")[2] for item in found.under_way}


def _all_left(folder: Folder) -> bool:
    """Whether every task that was to work is known to have left Slurm: such a folder may lie where there is none."""
    return all(
        submissions.read_gone(place).keys()
        >= {at for at, one in enumerate(submissions.read_elements(place)) if one.items}
        for place in folder.all_submissions()
        if not submissions.is_void(place)
    )


def _parents(state: StateFolder) -> set[str]:
    """The states that one starts from or is merged of."""
    try:
        segment = states.read_segment(state)
    except (FileNotFoundError, Damaged):
        return set()
    return {str(name) for name in (segment.get("recipe") or {}).get("of", ())} | (
        {str(segment["parent"])} if segment.get("parent") else set()
    )


def _wanted(plan: Mapping[str, Any], parents: Mapping[str, set[str]]) -> set[str]:
    """States of the study, and all that they come from."""
    found: set[str] = set()
    rest = [
        name
        for run in plan["runs"]
        for name in (run["base"], *run["path"], *(point["state"] for point in run["points"]))
    ]
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += parents.get(name, ())
    return found


def _finished(state: StateFolder) -> bool:
    try:
        return states.verify_state(state, contents=False) is not None
    except Damaged:
        return False


def _old_snapshots(folder: Folder) -> list[Path]:
    """All but the newest."""
    there = [path for path in folder.snapshots.iterdir() if path.is_dir()] if folder.snapshots.is_dir() else []
    return sorted(there, key=lambda path: path.stat().st_mtime)[:-1]


def _waste(kind: Kind, path: Path) -> Waste:
    total = 0
    for root, _, names in os.walk(path):
        total += sum((Path(root) / name).lstat().st_size for name in names)
    return Waste(kind, path, total)
