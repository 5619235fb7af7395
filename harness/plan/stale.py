"""States that other code has made: `stale: reuse | rerun | refuse`.

The code is known by the tree hash of its sources, recorded with every attempt. A change of the code need not change
what it computes, and nobody can tell from the hash: `reuse` takes such states as they are, and lint says where arms
mix code (`different-code`). `rerun` takes none of them, nor what was made from them, nor their checkpoints; `refuse`
stops before anything is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.plan.observed import Observed, StateSeen

if TYPE_CHECKING:
    from harness.plan.tree import Segment


def stale_states(segments: Mapping[str, Segment], observed: Observed) -> dict[str, str]:
    """State → why, for the states on the study's paths that other code has made or begun, and for all that was made
    from one. A state whose code is not recorded (the base, older records) counts as made by this code."""
    if observed.code is None:
        return {}
    found: dict[str, str] = {}
    for segment in segments.values():  # parents before children
        seen = observed.states.get(segment.id)
        if seen is None:
            continue
        if seen.code is not None and seen.code != observed.code:
            found[segment.id] = f"trained by other code ({seen.code[:8]}, now {observed.code[:8]})"
        elif any(parent in found for parent in segment.parents):
            found[segment.id] = "made from a state that was trained by other code"
    return found


def without(observed: Observed, stale: Mapping[str, str]) -> Observed:
    """What is there as if the stale states and every checkpoint in their folders were not; `stale` says why.

    A state that was only begun by other code keeps its reason too: its checkpoints are not taken up.
    """
    states = dict(observed.states)
    for name, reason in stale.items():
        states[name] = StateSeen("stale", reason=f"{reason}: again", code=states[name].code)
    checkpoints = {name: seen for name, seen in observed.checkpoints.items() if seen.owner not in stale}
    return replace(observed, states=states, checkpoints=checkpoints)
