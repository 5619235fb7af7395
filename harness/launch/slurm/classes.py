"""Failure classes: what ended a try, by evidence, and what follows from it. Pure.

The evidence is, in this order: what the job said of the item in its log, how Slurm says that the task left, and that
nobody knows. An exit code is never evidence of success: that is a marker, and asked for elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.launch.slurm.client import NEVER
from harness.store.submissions import Gone

Class = Literal[
    "preempted",
    "timeout_progress",
    "no_progress",
    "node",
    "oom_gpu",
    "oom_host",
    "diverged",
    "data",
    "disk",
    "auth",
    "user",
    "dependency",
    "cancelled",
    "held",
    "unknown",
]

# class: (tries again before it is held, what is done), for `docs/` and for messages
POLICY: Mapping[Class, tuple[int | None, str]] = {
    "preempted": (None, "goes on from its newest checkpoint, not counted"),
    "timeout_progress": (None, "goes on from its newest checkpoint in a job after it"),
    "no_progress": (1, "held after two tries in a row without a new checkpoint"),
    "node": (3, "a new job that avoids the node, three times"),
    "oom_gpu": (1, "once with half the micro-batch, batch tokens unchanged"),
    "oom_host": (1, "once with half as much memory again"),
    "diverged": (0, "a result"),
    "data": (0, "held: a file that it reads is missing or damaged"),
    "disk": (0, "held: the disk is full, or may not be written to"),
    "auth": (0, "held: a token or a licence is missing"),
    "user": (0, "held: the study or its inputs are wrong"),
    "dependency": (None, "submitted again when its parent is there"),
    "cancelled": (0, "stays so until `ablate retry`"),
    "held": (None, "submitted again when its group is let go"),
    "unknown": (1, "once more, then held"),
}
# Tries that were followed by a new checkpoint are forgiven.
FORGIVEN: frozenset[Class] = frozenset({"node", "unknown", "no_progress"})

_AUTH = re.compile(r"\b(401|403)\b|unauthorized|forbidden for url|gated repo|invalid (api )?(key|token)", re.IGNORECASE)
_NODE = re.compile(
    r"uncorrectable ecc|\bxid\b|nvlink|device-side assert|cuda error: (unknown|hardware|an illegal)|nccl.*(timeout|"
    r"timed out|system error)|no cuda-capable device|transport endpoint|stale file handle|input/output error",
    re.IGNORECASE,
)
_OOM_GPU = re.compile(r"cuda out of memory|outofmemoryerror|cublas_status_alloc_failed", re.IGNORECASE)

_OF_KIND: Mapping[str, Class] = {
    "memory": "oom_host",
    "memory-gpu": "oom_gpu",
    "disk": "disk",
    "forbidden": "disk",
    "damaged": "data",
    "parent": "dependency",
    "fenced": "preempted",  # a newer attempt is at work; if that dies, this is tried again
    "user": "user",
}
_OF_STATE: Mapping[str, Class] = {
    "PREEMPTED": "preempted",
    "TIMEOUT": "timeout_progress",
    "DEADLINE": "cancelled",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "LAUNCH_FAILED": "node",
    "RECONFIG_FAIL": "node",
    "OUT_OF_MEMORY": "oom_host",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}


@dataclass(frozen=True)
class End:
    """How a try at an item ended without its being done. evidence: in a few words. at: path tokens of the newest
    checkpoint when it began, None without one. node: where it ran. remedy: what it ran with."""

    kind: Class
    evidence: str
    submission: int
    at: int | None = None
    node: str | None = None
    remedy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What follows from the ends of an item. hold: why it is not tried again, None when it is."""

    hold: str | None = None
    kind: Class | None = None
    avoid: tuple[str, ...] = ()
    halvings: int = 0
    memory: int = 0


def of_failure(kind: str, error: str) -> Class:
    """The class of a failure that the work itself has named (`launch.failures`)."""
    if kind in ("error", "user") and _AUTH.search(error):
        return "auth"
    if kind in _OF_KIND:
        return _OF_KIND[kind]
    if _OOM_GPU.search(error):
        return "oom_gpu"
    if _NODE.search(error):
        return "node"
    return "unknown"


def ends(
    items: Sequence[str],
    log: Sequence[Mapping[str, Any]],
    gone: Gone,
    submission: int,
    parent_there: bool,
    remedy: Mapping[str, Any] = {},
    held: bool = False,
) -> dict[str, End]:
    """How the items of a task that has left ended, those that were done left out.

    log: what the task said. parent_there: whether the state that its first item starts from is there. held: whether it
    waited for a canary that has not passed.
    """
    life = _last_life(log)
    node = next((str(line["node"]) for line in life if line["kind"] == "started"), None)
    began = {line["item"]: line for line in life if line["kind"] == "began"}
    ended = {line["item"]: line for line in life if line["kind"] == "ended"}

    def end(kind: Class, evidence: str, at: int | None = None) -> End:
        return End(kind, evidence, submission, at, node, remedy)

    found: dict[str, End] = {}
    for item in items:
        if item in ended:
            said = _said(ended[item], began.get(item, {}), gone)
            if said is not None:
                found[item] = end(*said)
        elif item in began:
            kind, evidence = _death(gone)
            found[item] = end(kind, evidence, began[item].get("at"))
    if not began:
        kind, evidence = ("held", "its canary failed") if held else _never_began(life, gone, parent_there)
        found = {item: end(kind, evidence) for item in items[:1]}
    return found


def _last_life(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What the task has said since Slurm started it last."""
    begins = [at for at, line in enumerate(log) if line["kind"] in ("started", "held")]
    return list(log[begins[-1] :]) if begins else list(log)


def _said(line: Mapping[str, Any], began: Mapping[str, Any], gone: Gone) -> tuple[Class, str, int | None] | None:
    outcome, at = line["outcome"], began.get("at")
    if outcome == "blocked":
        return "dependency", str(line.get("error")), at
    if outcome == "failed":
        error = str(line.get("error"))
        if line.get("failure") == "rank" and gone.state in _OF_STATE:
            return _OF_STATE[gone.state], error, at
        return of_failure(str(line.get("failure")), error), error, at
    if outcome == "stopped":
        if line.get("signal") == "SIGUSR2" or gone.state == "TIMEOUT":
            advanced = line.get("at") is not None and (at is None or line["at"] > at)
            return ("timeout_progress" if advanced else "no_progress"), "its time limit came", at
        if gone.state == "CANCELLED":
            return "cancelled", "cancelled in Slurm", at
        return "preempted", f"told to stop by {line.get('signal', 'a signal')}", at
    return None


def _death(gone: Gone) -> tuple[Class, str]:
    """The class of work that ended without a word."""
    if gone.state in _OF_STATE:
        return _OF_STATE[gone.state], f"Slurm says {gone.state}"
    said = f"; Slurm says {gone.state}" if gone.state else "; Slurm has forgotten it"
    return "unknown", f"its process was killed{said}"


def _never_began(life: Sequence[Mapping[str, Any]], gone: Gone, parent_there: bool) -> tuple[Class, str]:
    held = [line for line in life if line["kind"] == "held"]
    if held:
        return "held", str(held[-1].get("reason"))
    crashed = [line for line in life if line["kind"] == "crashed"]
    if crashed:
        return "user", str(crashed[-1].get("error", "")).strip().splitlines()[-1]
    if not parent_there or gone.reason == NEVER:
        return "dependency", "its parent was not there"
    kind = _OF_STATE.get(gone.state)
    if kind is not None:
        return kind, f"Slurm says {gone.state} before it started"
    return (
        "node",
        f"it ended before its first word (`ablate logs` has its output); Slurm says {gone.state or 'nothing'}",
    )


def judge(tries: Sequence[End], newest: int | None) -> Verdict:
    """What follows from the tries at an item, oldest first. newest: path tokens of its newest checkpoint now."""
    if not tries:
        return Verdict()
    starts = [end.at for end in tries[1:]] + [newest]
    forward = [
        after is not None and (end.at is None or after > end.at) for end, after in zip(tries, starts, strict=True)
    ]
    # A limit that came before any new checkpoint would come again.
    kinds: list[Class] = [
        "no_progress" if end.kind == "timeout_progress" and not moved else end.kind
        for end, moved in zip(tries, forward, strict=True)
    ]
    last, count = kinds[-1], 0
    for kind, moved in zip(kinds, forward, strict=True):
        count += kind == last
        if moved and last in FORGIVEN:
            count = 0
    limit, _ = POLICY[last]
    hold = None if limit is None or count <= limit else tries[-1].evidence
    nodes = tuple(dict.fromkeys(end.node for end in tries if end.kind == "node" and end.node is not None))
    return Verdict(
        hold,
        last,
        nodes,
        sum(end.kind == "oom_gpu" for end in tries),
        sum(end.kind == "oom_host" for end in tries),
    )
