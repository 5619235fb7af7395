"""`launch.parallel` over several calls of sbatch: Slurm limits the running tasks of one array, so the limit is shared.

Pure. Every array gets a part of the limit, and the parts sum up to it; where there are more arrays than the limit, each
gets one and waits for the one that many places before it. So no more than the limit runs, at the price that a part is
not used by others while its own array waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.launch.slurm.batches import Batch


@dataclass(frozen=True)
class Share:
    """cap: tasks of a batch that may run at once, None for all. behind: a batch whose end it waits for."""

    cap: int | None = None
    behind: Batch | None = None


def shares(batches: Sequence[Batch], parallel: int | None) -> dict[Batch, Share]:
    """Each batch's part of `parallel`."""
    if parallel is None:
        return {batch: Share() for batch in batches}
    if len(batches) > parallel:
        behind = [None] * parallel + list(batches[:-parallel])
        return {batch: Share(1, before) for batch, before in zip(batches, behind, strict=True)}
    caps = [1] * len(batches)
    wanted = [len(batch.tasks) - 1 for batch in batches]
    spare = min(parallel - len(batches), sum(wanted))
    total = max(1, sum(wanted))
    for at, want in enumerate(wanted):
        caps[at] += spare * want // total
    left = spare - sum(spare * want // total for want in wanted)
    for at in sorted(range(len(batches)), key=lambda at: -wanted[at]):
        if left and caps[at] <= wanted[at]:
            caps[at], left = caps[at] + 1, left - 1
    return {batch: Share(cap) for batch, cap in zip(batches, caps, strict=True)}
