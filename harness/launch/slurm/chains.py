"""From items of work to what one job does: chains. Pure; knows nothing of Slurm.

Items that follow each other without a branch and ask for the same resources are done by one job, one after the other.
Evaluations and merges (`sides`) hang on a state and nothing waits for them: they come last in the job that makes the
state, unless others wait for that job to end; then they are a job beside those. A merge of states that several jobs
make is a job that waits for all of them, one for all merges of the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field

from harness.launch.work import Work


@dataclass(eq=False)
class Chain:
    """Items that one job does in order. parents: the chains whose end it waits for; none where nothing is waited for,
    several for a merge of what they make."""

    items: list[Work]
    group: Hashable
    parents: list[Chain] = field(default_factory=list)
    children: list[Chain] = field(default_factory=list)

    @property
    def needs(self) -> str | None:
        """The state that its first item starts from."""
        return self.items[0].needs

    @property
    def awaits(self) -> list[str]:
        """The states that its items start from and that it does not make itself."""
        made = {item.makes for item in self.items}
        return list(dict.fromkeys(state for item in self.items for state in item.awaits if state not in made))

    @property
    def before(self) -> set[Chain]:
        """All chains that must have ended before it begins."""
        found: set[Chain] = set()
        rest = list(self.parents)
        while rest:
            chain = rest.pop()
            if chain not in found:
                found.add(chain)
                rest += chain.parents
        return found

    @property
    def trains(self) -> bool:
        return any(item.kind == "train" for item in self.items)


def levels(chains: Sequence[Chain]) -> dict[Chain, int]:
    """The most chains that come before each, one after the other. chains: parents before children."""
    found: dict[Chain, int] = {}
    for chain in chains:
        found[chain] = max((found[parent] + 1 for parent in chain.parents), default=0)
    return found


def gated(chains: Sequence[Chain]) -> set[Chain]:
    """Those before which a chain trains with the same resources: they cannot start before that one has shown them.
    chains: parents before children."""
    trained: dict[Chain, frozenset[Hashable]] = {}  # groups in which something has trained when a chain ends
    found = set()
    for chain in chains:
        before = frozenset[Hashable]().union(*(trained[parent] for parent in chain.parents))
        if chain.group in before:
            found.add(chain)
        trained[chain] = before | {chain.group} if chain.trains else before
    return found


def chains(items: Sequence[Work], group: Callable[[Work], Hashable], under_way: Collection[str] = ()) -> list[Chain]:
    """Every item in exactly one chain, parents before children. group: the resources that an item asks for.

    items: what is to be done, without what is done or under way already. under_way: states that jobs are making.
    """
    return _Forest(items, group, under_way).grow()


class _Forest:
    def __init__(self, items: Sequence[Work], group: Callable[[Work], Hashable], under_way: Collection[str]) -> None:
        self._group = group
        made = {item.makes for item in items if item.makes is not None}
        self._roots: list[Work] = []
        self._next: dict[str, list[Work]] = {}
        self._sides: dict[str, list[Work]] = {}
        self._gathered: list[tuple[Work, list[str], bool]] = []  # merge, states from here, whether others are under way
        for item in items:
            own = [state for state in item.awaits if state in made]
            elsewhere = any(state in under_way for state in item.awaits)
            if not own:
                self._roots.append(item)
            elif len(own) > 1 or elsewhere:
                self._gathered.append((item, own, elsewhere))
            else:
                side = item.kind in ("evaluate", "merge")
                (self._sides if side else self._next).setdefault(own[0], []).append(item)
        self._found: list[Chain] = []

    def grow(self) -> list[Chain]:
        for item in self._roots:
            self._chain(item, None)
        for chain in self._found:  # grows while it is walked
            self._go_on(chain)
        self._gather()
        return self._found

    def _gather(self) -> None:
        """Place the merges of several states: at the end of the one chain that all come from, else in a chain that
        waits for all of theirs."""
        made_in = {item.makes: chain for chain in self._found for item in chain.items}
        beside = {
            (chain.group, frozenset(chain.parents)): chain
            for chain in self._found
            if chain.parents and all(item.kind in ("evaluate", "merge") for item in chain.items)
        }
        for item, own, elsewhere in self._gathered:
            homes = list(dict.fromkeys(made_in[state] for state in own))
            earlier = {before for home in homes for before in home.before}
            last = [home for home in homes if home not in earlier]
            group = self._group(item)
            chain = beside.get((group, frozenset(last)))
            if len(last) == 1 and not last[0].children and last[0].group == group and not elsewhere:
                chain = last[0]
            if chain is None or elsewhere:
                chain = beside[group, frozenset(last)] = Chain([], group, last)
                self._add(chain)
            self._put(chain, [item, *self._around(item)])

    def _put(self, chain: Chain, items: Sequence[Work]) -> None:
        """Append items to a chain; those that ask for other resources wait for it."""
        others: dict[Hashable, list[Work]] = {}
        for item in items:
            group = self._group(item)
            (chain.items if group == chain.group else others.setdefault(group, [])).append(item)
        for group, sides in others.items():
            self._add(Chain(sides, group, [chain]))

    def _chain(self, item: Work, parent: Chain | None) -> Chain:
        chain = Chain([item], self._group(item), [] if parent is None else [parent])
        self._add(chain)
        return chain

    def _add(self, chain: Chain) -> None:
        for parent in chain.parents:
            parent.children.append(chain)
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
            self._add(Chain(sides, group, [chain]))

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
