"""Which item of work is next: parents before children, training before evaluation, the longest remaining path first.

Pure bookkeeping, one for every executor. A failed item takes its descendants with it and nothing else; a diverged one
makes its descendants unreachable, which is a result and not a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from harness.launch.work import MAKES_STATE, Failure, Result, Work


class Queue:
    """Items, the states that they wait for, and how each ended.

    available: states that are there already. diverged: states that will never be there.
    """

    def __init__(self, items: Sequence[Work], available: Collection[str] = (), diverged: Collection[str] = ()) -> None:
        self.items = {item.id: item for item in items}
        self.results: dict[str, Result] = {}
        self.running: dict[str, Work] = {}
        self._order = {item.id: place for place, item in enumerate(items)}
        self._made_by = {item.makes: item for item in items if item.makes is not None}
        self._waiting: dict[str, list[Work]] = {}  # state → items that it is missing to
        self._missing: dict[str, set[str]] = {}  # item → states that it still waits for
        self._ready: list[Work] = []
        there = set(available)
        for item in items:
            missing = {state for state in item.awaits if state in self._made_by or state not in there}
            if not missing:
                self._ready.append(item)
            self._missing[item.id] = missing
            for state in item.awaits:
                if state in missing:
                    self._waiting.setdefault(state, []).append(item)
        self._remaining = self._longest_paths(items)
        for state in [state for state in self._waiting if state not in self._made_by]:
            self._give_up(state, state in diverged, f"the state {state[:12]} that it starts from is not there")

    def take(
        self, after: Work | None = None, busy_elsewhere: Callable[[Work], bool] = lambda item: False
    ) -> Work | None:
        """The next item for a worker that has just done `after`, None when nothing may start now.

        A child of what the worker has just made is preferred among equals. Items that another process is at work on
        (`busy_elsewhere`) stay in the queue.
        """
        made = after.makes if after is not None else None
        for item in sorted(self._ready, key=lambda item: self._rank(item, made)):
            if not busy_elsewhere(item):
                self._ready.remove(item)
                self.running[item.id] = item
                return item
        return None

    def settle(self, item: Work, result: Result) -> None:
        """Record how a running item ended, and release or give up what waits for it."""
        self.running.pop(item.id, None)
        self.results[item.id] = result
        if result.failure is not None and result.failure.kind == "disk":
            self._hold(Failure("disk", "not begun, since the disk is full"))
        if item.makes is None or result.outcome == "stopped":
            return
        if result.outcome in MAKES_STATE:
            self._release(item.makes)
        else:
            self._give_up(item.makes, result.outcome == "diverged", f"{item.name} failed before it")

    def _release(self, state: str) -> None:
        """A state is there: whoever waited for nothing else may start."""
        for item in self._waiting.pop(state, []):
            self._missing[item.id].discard(state)
            if not self._missing[item.id] and item.id not in self.results:
                self._ready.append(item)

    def again(self, item: Work) -> None:
        """Put a running item back: its worker was lost, and another one is to go on with it."""
        self.running.pop(item.id, None)
        self._ready.append(item)

    def _hold(self, why: Failure) -> None:
        """Begin nothing more: whatever comes next would meet the same, after hours of work."""
        held = [*self._ready, *(item for waiting in self._waiting.values() for item in waiting)]
        self.results |= {item.id: Result("blocked", why) for item in held if item.id not in self.results}
        self._ready.clear()
        self._waiting.clear()

    @property
    def ready(self) -> list[Work]:
        """Items that may start now, the next one first."""
        return sorted(self._ready, key=lambda item: self._rank(item, None))

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing can start any more."""
        return not self._ready and not self.running

    def _rank(self, item: Work, made: str | None) -> tuple[bool, int, bool, int]:
        child = made is not None and made in item.awaits
        return (item.kind == "evaluate", -self._remaining[item.id], not child, self._order[item.id])

    def _give_up(self, state: str, diverged: bool, reason: str) -> None:
        lost = self._waiting.pop(state, [])
        while lost:
            item = lost.pop()
            if item.id in self.results:  # another of the states that it waits for was given up before
                continue
            result = Result("unreachable") if diverged else Result("blocked", Failure("parent", reason))
            self.results[item.id] = result
            if item.makes is not None:
                lost += self._waiting.pop(item.makes, [])

    def _longest_paths(self, items: Sequence[Work]) -> dict[str, int]:
        """Tokens from the start of each item to the end of the longest chain that begins with it."""
        remaining: dict[str, int] = {}
        beyond: dict[str, int] = {}  # state -> longest chain that starts from it
        for item in reversed(_parents_first(items)):
            length = item.tokens + (beyond.get(item.makes, 0) if item.makes is not None else 0)
            remaining[item.id] = length
            for state in item.awaits:
                beyond[state] = max(beyond.get(state, 0), length)
        return remaining


def _parents_first(items: Sequence[Work]) -> list[Work]:
    children: dict[str, list[Work]] = {}
    made = {item.makes for item in items if item.makes is not None}
    left: dict[str, int] = {}  # item → states that it waits for and that nobody before it has made
    ordered: list[Work] = []
    for item in items:
        own = [state for state in item.awaits if state in made]
        left[item.id] = len(own)
        for state in own:
            children.setdefault(state, []).append(item)
        if not own:
            ordered.append(item)
    for item in ordered:  # grows while it is walked: each item brings the children that waited for it last
        for child in children.get(item.makes, []) if item.makes is not None else ():
            left[child.id] -= 1
            if not left[child.id]:
                ordered.append(child)
    if len(ordered) != len(items):
        raise ValueError("the items wait for each other in a circle")
    return ordered
