"""The tree of states: what runs have in common is one segment.

Runs whose paths agree over [0, x) pass through the same states up to x. A state is a node where a run needs one (the
end of a stage, a point to be evaluated) and where paths part, also inside a stage; the segments between nodes are the
work. Sharing is a property of the paths, nobody declares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.plan.fingerprint import state_within
from harness.plan.science import Piece


@dataclass(slots=True)
class Path:
    """A run's path: its base state, its merged pieces, and the tokens (ascending) at which it needs a state."""

    base: str
    pieces: list[Piece]
    cuts: tuple[int, ...]


@dataclass(slots=True)
class Segment:
    """The work between two states, and whether it must be done now. `id` names the state at its end.

    parent: a segment, or the base state. run: index of one path that passes through it.
    state: new, reused, recomputed, stale or re-keyed; reason: why, in words. needed: `run` will train it, beginning at
    start_tokens, from the checkpoint at start_path if not from the parent's. flops: None while the model is unknown.
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


@dataclass(slots=True)
class Tree:
    """Segments in an order in which parents come first, and each run's segments from 0 to its end."""

    segments: dict[str, Segment] = field(default_factory=dict)
    of_run: list[list[str]] = field(default_factory=list)


def build(paths: Sequence[Path]) -> Tree:
    """The tree of `paths`. Work is linear in the number of pieces of all paths."""
    tree = Tree()
    names: dict[tuple[str, str, int, int], str] = {}
    for index, cuts in enumerate(_cuts(paths)):
        tree.of_run.append(_walk(tree, names, index, paths[index], cuts))
    return tree


@dataclass(slots=True)
class _Group:
    """Paths that agree up to the start of their piece `depth`, and the cuts found so far, all before it."""

    members: list[int]
    depth: int
    cuts: tuple[int, ...]


def _cuts(paths: Sequence[Path]) -> list[Sequence[int]]:
    """For each path, every token at which it has a node: its own cuts and those of whoever shares that far."""
    cuts: list[Sequence[int]] = [()] * len(paths)
    by_base: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        by_base.setdefault(path.base, []).append(index)
    groups = [_Group(members, 0, ()) for members in by_base.values()]
    while groups:
        group = groups.pop()
        by_key: dict[tuple[str, int], list[int]] = {}
        for index in group.members:
            pieces = paths[index].pieces
            if group.depth < len(pieces):
                piece = pieces[group.depth]
                by_key.setdefault((piece.key, piece.data_seed), []).append(index)
            else:
                cuts[index] = group.cuts
        before = group.cuts
        if len(by_key) > 1:
            first = next(iter(by_key.values()))[0]
            parting = paths[first].pieces[group.depth].start
            if parting > 0 and (not before or before[-1] != parting):
                before = (*before, parting)
        for sharing in by_key.values():
            if len(sharing) == 1:  # nobody to share with: what is left of its path is its own
                reached = before[-1] if before else 0
                own = paths[sharing[0]].cuts
                cuts[sharing[0]] = (*before, *(cut for cut in own if cut > reached))
            else:
                groups += _share_piece(paths, sharing, group.depth, before)
    return cuts


def _share_piece(paths: Sequence[Path], sharing: list[int], depth: int, before: tuple[int, ...]) -> list[_Group]:
    """Cut the piece that `sharing` have in common; one group for each length, which agrees to its end."""
    by_end: dict[int, list[int]] = {}
    for index in sharing:
        by_end.setdefault(paths[index].pieces[depth].end, []).append(index)
    start = paths[sharing[0]].pieces[depth].start
    wanted = set(sorted(by_end)[:-1])  # where the shorter ones part from the longer ones
    for end, members in by_end.items():
        for own in {paths[index].cuts for index in members}:
            wanted.update(cut for cut in own if start < cut <= end)
    inside = sorted(wanted)
    return [
        _Group(members, depth + 1, (*before, *(cut for cut in inside if cut <= end))) for end, members in by_end.items()
    ]


def _walk(
    tree: Tree, known: dict[tuple[str, str, int, int], str], index: int, path: Path, cuts: Sequence[int]
) -> list[str]:
    """Name the states of a path at `cuts` and enter the segments that are not there yet. known: hashes made before."""
    names: list[str] = []
    parent, tokens_from = path.base, 0
    boundary, at = path.base, 0
    pieces = path.pieces
    for cut in cuts:
        stage = pieces[at].stage if pieces[at].end > tokens_from else pieces[at + 1].stage
        while pieces[at].end < cut:
            boundary = _name(known, boundary, pieces[at], pieces[at].end)
            at += 1
        name = _name(known, boundary, pieces[at], cut)
        if name not in tree.segments:
            tree.segments[name] = Segment(name, parent, tokens_from, cut, index, stage)
        names.append(name)
        parent, tokens_from = name, cut
    return names


def _name(known: dict[tuple[str, str, int, int], str], boundary: str, piece: Piece, tokens: int) -> str:
    what = (boundary, piece.key, piece.data_seed, tokens)
    name = known.get(what)
    if name is None:
        name = known[what] = state_within(boundary, piece, tokens)
    return name
