"""Whether the disk has room for what a plan keeps: said before hours are spent, and not refused: it is an estimate."""

from __future__ import annotations

import shutil

from harness.plan.plan import Plan
from harness.store.atomic import readable_bytes
from harness.store.layout import Folder


def shortage(plan: Plan, folder: Folder) -> str | None:
    """A sentence when the checkpoints that are still to be made take more than is free; None when they fit or when
    their size is not known."""
    total = plan.totals["disk_bytes"]
    made = [*plan.bases.values(), *plan.segments.values()]
    if total is None or not made:
        return None
    needed = total * sum(item.needed for item in made) / len(made)
    free = shutil.disk_usage(folder.root).free
    if needed <= free:
        return None
    return (
        f"the disk may become full: checkpoints take about {readable_bytes(needed)}, "
        f"{readable_bytes(free)} are free in {folder.root}"
    )
