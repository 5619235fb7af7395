"""What each arm asked of its sources and what it was served: declared shares against whole rows."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

from harness.launch.status import read_plan
from harness.plan.render import table
from harness.store import states
from harness.store.layout import Folder
from harness.store.markers import Damaged

MOST_ARMS = 20


def requested(pieces: list[dict[str, Any]]) -> dict[str, Fraction]:
    """Tokens that the declared shares ask of each source over a path, exact."""
    asked: dict[str, Fraction] = defaultdict(Fraction)
    for piece in pieces:
        for source, share in piece["science"]["mixture"].items():
            asked[source] += Fraction(share) * (piece["end"] - piece["start"])
    return dict(asked)


def text(folder: Folder, width: int = 80) -> str:
    """A line per arm and source: tokens requested and served, epochs of the pool; of the arm's first run."""
    rows = [["arm", "source", "requested", "served", "off by", "epochs"]]
    shown: set[str] = set()
    for run in read_plan(folder)["runs"]:
        if run["arm"] in shown or len(shown) == MOST_ARMS:
            continue
        found = _run(folder, run["path"][-1])
        if found:
            shown.add(run["arm"])
            rows += [[run["arm"] if first == 0 else "", *row] for first, row in enumerate(found)]
    return table(rows, right=[2, 3, 4, 5], width=width) if len(rows) > 1 else ""


def _run(folder: Folder, last: str) -> list[list[str]]:
    """Rows of a run whose last segment is trained; none where it is not."""
    state = folder.state(last)
    try:
        done, segment = states.read_done(state), states.read_segment(state)
    except (Damaged, FileNotFoundError):
        return []
    served = {} if done is None else done.summary.get("served", {})
    if not served:
        return []
    asked = requested(segment["pieces"])
    return [
        [
            name,
            f"{float(asked[name]):,.0f}",
            f"{served[name]['tokens']:,}",
            f"{served[name]['tokens'] - float(asked[name]):+,.0f}",
            f"{served[name]['epochs']:.2f}",
        ]
        for name in sorted(asked)
    ]
