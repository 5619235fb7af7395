"""What a new try gets that the one before it did not have. Execution only: science is never changed by a failure.

Out of GPU memory: half the micro-batch, so twice the accumulation and the same batch tokens. Out of the machine's
memory: half as much again. A bad node: another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.launch.slurm import resources
from harness.launch.slurm.classes import Verdict
from harness.launch.slurm.decide import Held

if TYPE_CHECKING:
    from harness.launch.work import Work
    from harness.plan.plan import Plan

_MEMORY = ("mem", "mem_per_cpu", "mem_per_gpu")


@dataclass(frozen=True)
class Remedied:
    """What a job is given. parameters: of Submitit's executor. remedy: settings in place of the study's, recorded with
    the attempts."""

    parameters: Mapping[str, Any]
    remedy: Mapping[str, Any] = field(default_factory=dict)


def remedied(
    item: Work, verdict: Verdict, parameters: Mapping[str, Any], micro_batch: int | None, plan: Plan
) -> Remedied | Held:
    """An item's parameters and settings after its failures; Held where there is nothing left to change."""
    changed, remedy = dict(parameters), {}
    if verdict.avoid:
        changed["exclude"] = ",".join([*([str(changed["exclude"])] if changed.get("exclude") else []), *verdict.avoid])
    if verdict.memory:
        more = _more_memory(changed, verdict.memory)
        if more is None:
            return Held("oom_host", "it ran out of memory, and launch.slurm gives no `mem` that could be raised")
        changed |= more
    if verdict.halvings:
        tokens = halved(item, verdict.halvings, micro_batch, plan, resources.tasks(parameters))
        if tokens is None:
            why = "evaluating" if item.kind == "evaluate" else "one row at a time"
            return Held("oom_gpu", f"out of GPU memory {why}: there is no smaller micro-batch")
        remedy["micro_batch"] = tokens
    return Remedied(changed, remedy)


def with_those_of_its_group(item: Work, own: Verdict, group: Verdict) -> Verdict:
    """What follows for an item from its own failures and from the memory that others of its resources have lacked: what
    one has found out need not be found out by each."""
    halvings = max(own.halvings, group.halvings) if item.kind == "train" else own.halvings
    return replace(own, halvings=halvings, memory=max(own.memory, group.memory))


def halved(item: Work, halvings: int, micro_batch: int | None, plan: Plan, world: int = 1) -> int | None:
    """Tokens of a forward pass after halving its rows; None where a row is left, or nothing is trained.

    world: processes that share a batch.
    """
    segment = plan.segments.get(item.state)
    if item.kind != "train" or segment is None:
        return None
    pieces = [piece for piece in plan.runs[segment.run].pieces if segment.tokens_from < piece.end]
    science = pieces[0].science
    length, batch = int(science["context"]["length"]), int(science["batch_tokens"])
    rows = (min(micro_batch or batch, batch // world) // length) >> halvings
    return rows * length if rows else None


def _more_memory(parameters: Mapping[str, Any], times: int) -> dict[str, Any] | None:
    """Sizes such as `64G` times 1.5 for each failure."""
    found = {name: parameters[name] for name in _MEMORY if parameters.get(name) is not None}
    scaled = {}
    for name, value in found.items():
        size = re.fullmatch(r"(\d+)\s*([KMGT]?)B?", str(value).strip(), re.IGNORECASE)
        if size is None or int(size.group(1)) == 0:  # 0 asks for all that a node has
            return None
        scaled[name] = f"{-(-int(size.group(1)) * 3**times // 2**times)}{size.group(2)}"
    return scaled or None
