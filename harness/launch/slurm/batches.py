"""From chains to calls of sbatch: batches. Pure; knows nothing of Slurm but what its arrays can express.

A batch is one call: a job array (or a job) whose tasks ask for the same resources and wait for the same thing. One
array per (parent, resources): its tasks start when the parent's job has ended well (`afterok`). Where the tasks of one
array have children, there are two ways, and the one with fewer calls is taken: an array for each parent, or one for the
first children of all parents, one for the second, and so on, task i waiting for task i (`aftercorr`). Where a study
would still need more than `CALLS`, the tasks of a level are put into one array that waits until all its parents have
ended (`afterany`); each task then looks itself whether its own parent is there. So it is with merges of what several
jobs make: one waits for all of them (`afterok`), several are one array that waits for all of theirs (`afterany`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.launch.slurm.chains import Chain, gated, levels

CALLS = 8  # of sbatch for a study, its closing job included, where its tree allows that
How = Literal["afterok", "aftercorr", "afterany"]


@dataclass(eq=False)
class Batch:
    """One call of sbatch.

    tasks: by index of the array; indices have gaps where a parent has no child of this place. after: what it waits
    for, as tasks of other batches (batch, index) with None for all of it, or jobs that are in Slurm already (words such
    as `123_4`). canary: its one task is to show that its resources work. held_for: the canary, or the number of the
    submission with the canary, that it is held for; None where it may start.
    """

    tasks: dict[int, Chain]
    group: Hashable
    after: list[tuple[Batch, int | None] | str] = field(default_factory=list)
    how: How = "afterok"
    canary: bool = False
    held_for: Batch | int | None = None

    @property
    def array(self) -> bool:
        return len(self.tasks) > 1 or 0 not in self.tasks


@dataclass(frozen=True)
class Limits:
    """What a cluster takes. array: tasks of one array, which is MaxArraySize, since indices begin at 0."""

    array: int = 1001


@dataclass(frozen=True)
class Canaries:
    """Groups that have passed a first checkpoint, and the submissions of canaries that have not yet."""

    passed: Collection[Hashable] = ()
    waiting: Mapping[Hashable, int] = field(default_factory=dict)


def batches(
    chains: Sequence[Chain],
    limits: Limits = Limits(),
    canaries: Canaries = Canaries(),
    under_way: Callable[[Chain], Sequence[str]] = lambda chain: (),
) -> list[Batch]:
    """The calls of sbatch that submit `chains`, in an order in which each waits only for those before it.

    under_way: the jobs in Slurm at which the states that a chain starts from are being made.
    """
    level, behind = levels(chains), gated(chains)
    depth = max(level.values(), default=-1) + 1
    best: list[Batch] | None = None
    for merged in range(depth + 1):
        found = _Layers(limits, canaries, under_way, merged, level, behind).build(chains)
        if best is None or len(found) < len(best):
            best = found
        if len(best) + 1 <= CALLS:
            break
    return best or []


class _Layers:
    """merged: how many levels, from the first that waits, have one array for all parents."""

    def __init__(
        self,
        limits: Limits,
        canaries: Canaries,
        under_way: Callable[[Chain], Sequence[str]],
        merged: int,
        level: Mapping[Chain, int],
        behind: set[Chain],
    ) -> None:
        self._level = level
        self._gated = behind
        self._limits = limits
        self._passed = canaries.passed
        self._canary_of: dict[Hashable, Batch | int] = dict(canaries.waiting)
        self._under_way = under_way
        self._merged = merged
        self._place: dict[Chain, tuple[Batch, int]] = {}
        self._batches: list[Batch] = []

    def build(self, chains: Sequence[Chain]) -> list[Batch]:
        for level, alike in sorted(_by(chains, self._level.__getitem__).items()):
            if level == 0:
                self._roots(alike)
            elif level <= self._merged:
                self._merge(alike)
            else:
                several = {chain for chain in alike if len(chain.parents) > 1 or self._under_way(chain)}
                self._below([chain for chain in alike if chain not in several])
                self._merge([chain for chain in alike if chain in several])
        return self._batches

    def _roots(self, chains: Sequence[Chain]) -> None:
        for _, of_group in _by(chains, lambda chain: chain.group).items():
            by_job = _by(of_group, lambda chain: tuple(self._under_way(chain)))
            ready = by_job.pop((), [])
            self._arrays(ready, [], "afterok")
            if len(by_job) <= CALLS // 2:
                for jobs, alike in by_job.items():
                    self._arrays(alike, list(jobs), "afterok")
            else:  # one array that waits until all have ended
                all_jobs = list(dict.fromkeys(job for jobs in by_job for job in jobs))
                self._arrays([chain for alike in by_job.values() for chain in alike], list(all_jobs), "afterany")

    def _merge(self, chains: Sequence[Chain]) -> None:
        for alike in _by(chains, lambda chain: chain.group).values():
            for part in self._parts(alike):
                parents = dict.fromkeys(self._place[parent] for chain in part for parent in chain.parents)
                after: list[tuple[Batch, int | None] | str] = [(batch, _index(batch, at)) for batch, at in parents]
                after += dict.fromkeys(word for chain in part for word in self._under_way(chain))
                alone = len(part) == 1 and (len(after) > 1 or self._level[part[0]] > self._merged)
                self._add(dict(enumerate(part)), after, "afterok" if alone else "afterany")

    def _below(self, chains: Sequence[Chain]) -> None:
        for (_, batch), alike in _by(chains, lambda chain: (chain.group, self._place[_parent(chain)][0])).items():
            children = _by(alike, lambda chain: self._place[_parent(chain)][1])
            most = max(len(of_one) for of_one in children.values())
            if batch.array and most < len(children):
                for place in range(most):
                    tasks = {at: of_one[place] for at, of_one in children.items() if place < len(of_one)}
                    self._add(tasks, [(batch, None)], "aftercorr")
            else:
                for at, of_one in children.items():
                    self._arrays(of_one, [(batch, _index(batch, at))], "afterok")

    def _arrays(self, chains: Sequence[Chain], after: list[tuple[Batch, int | None] | str], how: How) -> None:
        for part in self._parts(chains):
            self._add(dict(enumerate(part)), list(after), how)

    def _parts(self, chains: Sequence[Chain]) -> list[Sequence[Chain]]:
        """Cut into arrays that are not too long. The canary of a group stands alone in the first."""
        parts: list[Sequence[Chain]] = []
        rest = list(chains)
        if len(rest) > 1 and self._wants_canary(rest[0]):
            first = next((chain for chain in rest if chain.trains), None)
            if first is not None:
                rest.remove(first)
                parts.append([first])
        return parts + [rest[at : at + self._limits.array] for at in range(0, len(rest), self._limits.array)]

    def _wants_canary(self, chain: Chain) -> bool:
        return chain.group not in self._passed and chain.group not in self._canary_of and chain not in self._gated

    def _add(self, tasks: dict[int, Chain], after: list[tuple[Batch, int | None] | str], how: How) -> None:
        first = next(iter(tasks.values()))
        batch = Batch(tasks, first.group, after, how)
        if len(tasks) == 1 and first.trains and self._wants_canary(first):
            batch.canary = True
            self._canary_of[first.group] = batch
        elif first.group not in self._passed and not self._gated.issuperset(tasks.values()):
            batch.held_for = self._canary_of.get(first.group)
        for index, chain in tasks.items():
            self._place[chain] = (batch, index)
        self._batches.append(batch)


def _parent(chain: Chain) -> Chain:
    (parent,) = chain.parents
    return parent


def _index(batch: Batch, at: int) -> int | None:
    return at if batch.array else None


def _by(chains: Sequence[Chain], key: Callable[[Chain], Any]) -> dict[Any, list[Chain]]:
    found: dict[Any, list[Chain]] = {}
    for chain in chains:
        found.setdefault(key(chain), []).append(chain)
    return found
