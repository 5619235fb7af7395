"""What is to be done with each item of work now: nothing, wait, hold it, or submit it. Pure.

Desired is the list of items that the plan still needs; observed is what is in the queue, how earlier tries ended, and
what people have asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from harness.launch.slurm.classes import End, Verdict, judge
from harness.launch.work import Work

CANCELLED = "cancelled"


@dataclass(frozen=True)
class Held:
    """An item that is not submitted. kind: of the failure, or `group`, `budget`, `parent`; reason: in a sentence."""

    kind: str
    reason: str


@dataclass
class Decision:
    """ready: to be submitted, parents first. held: by item, those that wait for a held one included. verdicts: what
    follows from the earlier tries at each ready item."""

    ready: list[Work] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def hold(self, item: Work, why: Held) -> None:
        self.held[item.id] = why
        self.verdicts.pop(item.id, None)


def decide(
    items: Sequence[Work],
    under_way: Collection[str],
    tries: Mapping[str, Sequence[End]],
    newest: Callable[[Work], int | None],
    cancelled: Collection[str],
    group_held: Callable[[Work], str | None],
) -> Decision:
    """Decide for every item. newest: path tokens of its newest checkpoint. group_held: why its resources are held."""
    found = Decision()
    for item in items:
        if item.id in under_way:
            continue
        if item.id in cancelled:
            found.hold(item, Held(CANCELLED, "cancelled by `ablate cancel`"))
            continue
        verdict = judge(tries.get(item.id, ()), newest(item))
        group = group_held(item)
        if verdict.hold is not None:
            found.hold(item, Held(str(verdict.kind), verdict.hold))
        elif group is not None:
            found.hold(item, Held("group", group))
        else:
            found.ready.append(item)
            found.verdicts[item.id] = verdict
    without_parents(found, items)
    return found


def without_parents(decision: Decision, items: Sequence[Work]) -> None:
    """Hold what starts from a state that a held item was to make. items: parents first."""
    lost = {item.makes: item for item in items if item.id in decision.held and item.makes is not None}
    ready = []
    for item in decision.ready:
        missing = next((state for state in item.awaits if state in lost), None)
        if missing is not None:
            decision.hold(item, Held("parent", f"waits for {lost[missing].name}"))
            if item.makes is not None:
                lost[item.makes] = lost[missing]
        else:
            ready.append(item)
    decision.ready = ready
