"""Slurm's own commands: one `squeue` for a whole look, and the few that act. No `sacct` is needed.

The commands are called with lists of arguments and never through a shell.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.store.layout import Folder
from harness.study.errors import UserError

SECONDS = 60.0  # a controller under load answers late
# States of a task that Slurm still does something with; every other one is an end.
_ACTIVE = """
    PENDING RUNNING CONFIGURING COMPLETING SUSPENDED REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD
    SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED
    """
ACTIVE = frozenset(_ACTIVE.split())
NEVER = "DependencyNeverSatisfied"


# Defaults that people set for themselves: they would leave jobs out of a look, or out of what is cancelled.
_DEFAULTS = ("SQUEUE_", "SCANCEL_", "SCONTROL_", "SACCT_", "SLURM_CLUSTERS")
_RELEASED = ("Invalid job id", "already completing", "not held", "Job/step", "already finished")


class Unreachable(UserError):
    """Slurm does not answer. Nothing is known of the queue then, so nothing is done."""


@dataclass(frozen=True)
class Row:
    """One task in the queue. job: the id of its array, or its own; index: in the array, 0 for a job alone."""

    job: str
    index: int
    name: str
    state: str
    reason: str

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


class Queue:
    """One look at the queue: every task that Slurm still remembers, of whoever submitted for the folder."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.tasks = {(row.job, row.index): row for row in rows}
        self._named = {row.name: row.job for row in rows}

    def job_named(self, name: str) -> str | None:
        """The id of the job with that name."""
        return self._named.get(name)


def look(folder: Folder) -> Queue:
    """Ask `squeue` once for the jobs of this user and of all who have submitted for `folder`. Raises Unreachable."""
    people = {os.getuid(), *(place.root.stat().st_uid for place in folder.all_submissions())}
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={','.join(map(str, sorted(people)))}"]
    return Queue(parse(_run([*command, "--format=%F|%K|%T|%r|%j"])))


def parse(text: str) -> list[Row]:
    """Rows of squeue's output; the name comes last, because it may hold anything."""
    rows = []
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) == 5:
            job, index, state, reason, name = parts
            rows.append(Row(job, int(index) if index.isdigit() else 0, name, state, reason))
    return rows


def cancel(tasks: Sequence[str]) -> None:
    """`scancel` of jobs (`12`) and tasks (`12_3`). Those that are gone already do not matter. Raises Unreachable."""
    for first in range(0, len(tasks), 500):  # an argument list has a longest length
        _run(["scancel", "--quiet", *tasks[first : first + 500]], harmless=("Invalid job id", "already completing"))


def release(jobs: Sequence[str]) -> None:
    """Let held jobs go. Those that are gone, or go already, do not matter. Raises Unreachable."""
    for job in jobs:
        _run(["scontrol", "release", job], harmless=_RELEASED)


def requeue(job: str) -> bool:
    """Whether Slurm has taken a running job back into its queue."""
    try:
        _run(["scontrol", "requeue", job])
    except Unreachable:
        return False
    return True


@lru_cache(maxsize=1)
def max_array_size() -> int:
    """MaxArraySize: one more than the largest index of an array. Raises Unreachable."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(found.group(1))) if found else 1001


def accounted(jobs: Sequence[str], since: float) -> dict[tuple[str, int], str]:
    """State of each task by `sacct`, empty where there is no accounting. since: seconds since the epoch; sacct's own
    window begins at midnight."""
    import time

    if not jobs or shutil.which("sacct") is None:
        return {}
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--starttime", start, "--jobs", ",".join(jobs)]
    try:
        text = _run([*command, "--format=JobID,State"])
    except Unreachable:
        return {}
    return parse_accounted(text)


def parse_accounted(text: str) -> dict[tuple[str, int], str]:
    """`12_3|CANCELLED by 1000` as {("12", 3): "CANCELLED"}; `12_[4-5,7%1]` stands for tasks that never started."""
    found = {}
    for line in text.splitlines():
        name, _, state = line.partition("|")
        job, _, index = name.partition("_")
        if job.isdigit() and state:
            found.update({(job, at): state.split()[0] for at in _indices(index)})
    return found


def _indices(words: str) -> list[int]:
    """The indices that `3`, `[4-5,7%1]` or, of a job alone, nothing stands for."""
    if words == "":
        return [0]
    found = []
    for part in words.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found += range(int(first), int(last or first) + 1)
    return found


def _run(command: Sequence[str], harmless: Sequence[str] = ()) -> str:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_DEFAULTS)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            env={**ours, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is for `ablate`, which would take an interrupted answer for a refusal
        )
    except FileNotFoundError:
        raise Unreachable(
            f"`{command[0]}` is not on this machine: there is no Slurm here. Run this on a login node of the cluster, "
            "or train here with `--executor local`."
        ) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"`{command[0]}` has not answered for {SECONDS:.0f} s; run this again later.") from None
    if done.returncode != 0 and not any(words.lower() in done.stderr.lower() for words in harmless):
        said = " ".join(done.stderr.split())[:300]
        what = " ".join(word for word in command[:2] if not word.startswith("-"))
        raise Unreachable(f"`{what}` failed: {said}. Nothing was changed; run this again later.")
    return done.stdout
