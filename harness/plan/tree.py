"""The tree of states: what runs have in common is one segment.

Runs whose paths agree over [0, x) pass through the same states up to x. A state is a node where a run needs one (the
end of a stage, a point to be evaluated) and where paths part, also inside a stage; the segments between nodes are the
work. Sharing is a property of the paths, nobody declares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.plan.fingerprint import state_within
from harness.plan.science import Piece


@dataclass(slots=True)
class Path:
    """A run's path: its base state, its merged pieces with the data seed of each, and the tokens (ascending, the last
    its end) at which it needs a state."""

    base: str
    pieces: list[Piece]
    data_seeds: list[int]
    cuts: tuple[int, ...]


@dataclass(slots=True)
class Segment:
    """The work between two states, and whether it must be done now. `id` names the state at its end.

    parent: a segment, or the base state; of a merge the last of its parts. run: index of one path that passes through
    it. state: new, reused, recomputed, stale or re-keyed; reason: why, in words. needed: `run` will train it, beginning
    at start_tokens, from the checkpoint at start_path if not from the parent's. flops: None while the model is unknown.
    kind: train, or merge (see `plan.merges`), which has a recipe.
    """

    id: str
    parent: str
    tokens_from: int
    tokens_to: int
    run: int
    stage: str
    kind: str = "train"
    flops: int | None = None
    state: str = "new"
    reason: str = ""
    needed: bool = True
    start_tokens: int = 0
    start_path: str | None = None
    recipe: Mapping[str, Any] | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """The states that must be there before it: all of a merge's parts."""
        return (self.parent,) if self.recipe is None else tuple(dict.fromkeys(self.recipe["of"]))


@dataclass(slots=True)
class Tree:
    """Segments in an order in which parents come first, and each run's segments from 0 to its end."""

    segments: dict[str, Segment] = field(default_factory=dict)
    of_run: list[list[str]] = field(default_factory=list)


def build(paths: Sequence[Path]) -> Tree:
    """The tree of `paths`. Work is linear in the number of pieces of all paths; what they share is walked once."""
    builder = _Builder(paths)
    by_base: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        by_base.setdefault(path.base, []).append(index)
    for base, members in by_base.items():
        builder.groups.append(_Group(members, 0, base, base, 0, 0, ()))
    while builder.groups:
        builder.part(builder.groups.pop())
    return Tree(builder.segments, builder.of_run)


@dataclass(slots=True)
class _Group:
    """Paths that agree up to the start of their piece `depth`, a natural boundary at token `at` named `boundary`.

    node: the last state that was cut, at token `node_at`; names: the segments up to it.
    """

    members: list[int]
    depth: int
    boundary: str
    node: str
    at: int
    node_at: int
    names: tuple[str, ...]


class _Builder:
    """Walks groups of paths that agree, from the root; enters a segment wherever one of them needs a state."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.groups: list[_Group] = []
        self.segments: dict[str, Segment] = {}
        self.of_run: list[list[str]] = [[] for _ in paths]

    def part(self, group: _Group) -> None:
        """Follow a group through its next piece: part it by what comes next, then by how long that lasts."""
        by_next: dict[tuple[str, int], list[int]] = {}
        depth = group.depth
        for index in group.members:
            path = self._paths[index]
            if depth < len(path.pieces):
                by_next.setdefault((path.pieces[depth].key, path.data_seeds[depth]), []).append(index)
            else:
                self.of_run[index] = list(group.names)
        if len(by_next) > 1 and group.node_at < group.at:
            index = next(iter(by_next.values()))[0]
            self._cut(group, index, group.boundary, group.at, self._paths[index].pieces[depth - 1].stage)
        for sharing in by_next.values():
            if len(sharing) == 1:
                self._alone(group, sharing[0])
            else:
                self._through(group, sharing)

    def _alone(self, group: _Group, index: int) -> None:
        """Follow a path that nobody shares any more to its end; it is cut where it needs a state itself."""
        path = self._paths[index]
        boundary, depth = group.boundary, group.depth
        node, node_at, names = group.node, group.node_at, list(group.names)
        stage = path.pieces[depth].stage if node_at >= group.at else self._stage(index, group, "")
        for cut in path.cuts:
            if cut <= node_at:
                continue
            while path.pieces[depth].end < cut:
                piece = path.pieces[depth]
                boundary = state_within(boundary, piece, path.data_seeds[depth], piece.end)
                depth += 1
                if piece.end == node_at:
                    stage = path.pieces[depth].stage
            piece = path.pieces[depth]
            name = state_within(boundary, piece, path.data_seeds[depth], cut)
            if name not in self.segments:
                self.segments[name] = Segment(name, node, node_at, cut, index, stage)
            names.append(name)
            node, node_at, stage = name, cut, piece.stage
        self.of_run[index] = names

    def _through(self, group: _Group, sharing: list[int]) -> None:
        """Cut the piece that `sharing` have in common; those for which it is equally long go on together."""
        depth = group.depth
        by_end: dict[int, list[int]] = {}
        for index in sharing:
            by_end.setdefault(self._paths[index].pieces[depth].end, []).append(index)
        first = self._paths[sharing[0]]
        piece, seed = first.pieces[depth], first.data_seeds[depth]
        wanted = set(sorted(by_end)[:-1])  # where the shorter ones part from the longer ones
        for own in {self._paths[index].cuts for index in sharing}:
            wanted.update(cut for cut in own if cut > piece.start)
        inside = _Group(sharing, depth, group.boundary, group.node, group.at, group.node_at, group.names)
        cuts = sorted(wanted)
        for end in sorted(by_end):
            while cuts and cuts[0] <= end:
                cut = cuts.pop(0)
                # Not any member: one that ended this piece before goes on with another, whose rate is not this one's.
                index = next(i for i in sharing if self._paths[i].pieces[depth].end >= cut)
                self._cut(inside, index, state_within(group.boundary, piece, seed, cut), cut, piece.stage)
            ended = inside.node if inside.node_at == end else state_within(group.boundary, piece, seed, end)
            members = by_end[end]
            self.groups.append(_Group(members, depth + 1, ended, inside.node, end, inside.node_at, inside.names))

    def _cut(self, group: _Group, index: int, name: str, tokens: int, stage: str) -> None:
        """Enter the segment from the group's last node to `name`, and make that the last node."""
        if name not in self.segments:
            run = self._run_through(group, index, tokens)
            self.segments[name] = Segment(name, group.node, group.node_at, tokens, run, self._stage(run, group, stage))
        group.node, group.node_at, group.names = name, tokens, (*group.names, name)

    def _run_through(self, group: _Group, index: int, tokens: int) -> int:
        """A member whose path reaches `tokens`."""
        if self._paths[index].pieces[-1].end >= tokens:
            return index
        return next(member for member in group.members if self._paths[member].pieces[-1].end >= tokens)

    def _stage(self, run: int, group: _Group, stage: str) -> str:
        """The stage in which the segment begins; a piece may run through several, as a segment may through pieces."""
        if group.node_at >= group.at:
            return stage
        return next(piece.stage for piece in self._paths[run].pieces if piece.end > group.node_at)
