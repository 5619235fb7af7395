"""From items of work to what one job does: chains. Pure; knows nothing of Slurm.

Items that follow each other without a branch and ask for the same resources are done by one job, one after the other.
Evaluations and merges (`sides`) hang on a state and nothing waits for them: they come last in the job that makes the
state, unless others wait for that job to end; then they are a job beside those.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from harness.launch.work import Work


@dataclass(eq=False)
class Chain:
    """Items that one job does in order. parent: the chain whose end it waits for, None where nothing is waited for."""

    items: list[Work]
    group: Hashable
    parent: Chain | None = None
    children: list[Chain] = field(default_factory=list)

    @property
    def needs(self) -> str | None:
        """The state that its first item starts from."""
        return self.items[0].needs

    @property
    def trains(self) -> bool:
        return any(item.kind == "train" for item in self.items)

    @property
    def level(self) -> int:
        """How many chains come before it."""
        return 0 if self.parent is None else self.parent.level + 1


def chains(items: Sequence[Work], group: Callable[[Work], Hashable]) -> list[Chain]:
    """Every item in exactly one chain, parents before children. group: the resources that an item asks for.

    items: what is to be done, without what is done or under way already.
    """
    return _Forest(items, group).grow()


class _Forest:
    def __init__(self, items: Sequence[Work], group: Callable[[Work], Hashable]) -> None:
        self._group = group
        made = {item.makes for item in items if item.makes is not None}
        self._roots = [item for item in items if item.needs is None or item.needs not in made]
        self._next: dict[str, list[Work]] = {}
        self._sides: dict[str, list[Work]] = {}
        for item in items:
            if item.needs is not None and item.needs in made:
                side = item.kind in ("evaluate", "merge")
                (self._sides if side else self._next).setdefault(item.needs, []).append(item)
        self._found: list[Chain] = []

    def grow(self) -> list[Chain]:
        for item in self._roots:
            self._chain(item, None)
        for chain in self._found:  # grows while it is walked
            self._go_on(chain)
        return self._found

    def _chain(self, item: Work, parent: Chain | None) -> Chain:
        chain = Chain([item], self._group(item), parent)
        self._add(chain)
        return chain

    def _add(self, chain: Chain) -> None:
        if chain.parent is not None:
            chain.parent.children.append(chain)
        self._found.append(chain)

    def _go_on(self, chain: Chain) -> None:
        """Lengthen a chain as far as it goes, and begin those that wait for it."""
        pending: list[Work] = []
        for item in chain.items:
            pending += self._around(item)
        followers = self._followers(chain)
        while len(followers) == 1 and self._group(followers[0]) == chain.group:
            chain.items.append(followers[0])
            pending += self._around(followers[0])
            followers = self._followers(chain)
        beside: dict[Hashable, list[Work]] = {}
        for side in pending:
            beside.setdefault(self._group(side), []).append(side)
        if not followers:
            chain.items += beside.pop(chain.group, [])
        for item in followers:
            self._chain(item, chain)
        for group, sides in beside.items():
            self._add(Chain(sides, group, chain))

    def _followers(self, chain: Chain) -> list[Work]:
        made = chain.items[-1].makes
        return [] if made is None else self._next.pop(made, [])

    def _around(self, item: Work) -> list[Work]:
        """What hangs on the state that an item makes, merges with their evaluations; each is given once."""
        if item.makes is None:
            return []
        found = self._sides.pop(item.makes, [])
        for side in found:
            found += self._around(side)
        return found
