"""Merges as declared: arms that are made of others' weights and trained nowhere.

    seeds        one model of all runs of an arm: no replicates, so a row without tests
    arms         of several arms, seed by seed: a run per seed set, but no test of its own
    checkpoints  of an arm's path at a constant rate, seed by seed: the last `over` tokens every `every` (WSM)

Everything that is not used is refused: a merge that ignores a key would be another one than was meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from harness.study.checks import check_name
from harness.study.errors import Mistake, nearest
from harness.study.lengths import Lengths
from harness.study.paths import Path
from harness.study.schema import MergeSpec, StudySpec
from harness.study.schema.merge import Decay, MergeOf
from harness.study.treatment import Arm, Context, Treatment
from harness.study.units import TokenCount, exact

_TAKES: Mapping[MergeOf, tuple[str, ...]] = {
    "seeds": ("arm", "weights"),
    "arms": ("arms", "weights"),
    "checkpoints": ("arm", "over", "every", "decay", "to", "weights"),
}
_KEYS = ("arm", "arms", "weights", "over", "every", "decay", "to")
END = "end"
MOST_PARTS = 10_000  # of a mean: each is a state that stays


@dataclass(frozen=True)
class Merge:
    """One merge, resolved. arms: as the user names them; one but for `of: arms`.

    weights: of the parts, as written, None for equal ones or those of a decay. over, every: tokens, whole batches, `of:
    checkpoints` alone. decay, to: whose updates the mean stands for, and what it leaves of the rate. changes: the
    block as written, which is what the arm declares.
    """

    name: str
    of: MergeOf
    arms: tuple[str, ...]
    weights: tuple[Fraction, ...] | None
    changes: Mapping[str, Any]
    over: int = 0
    every: int = 0
    decay: Decay | None = None
    to: Fraction = Fraction(0)

    @property
    def pooled(self) -> bool:
        """Whether it is one model of all seeds, and so has no replicates."""
        return self.of == "seeds"

    @property
    def place(self) -> Path:
        return ("merge", self.name)


def resolve_merges(
    spec: StudySpec, written: Mapping[str, Any], arms: Mapping[str, Arm], seeds: Sequence[str], lengths: Lengths
) -> tuple[Merge, ...]:
    """The merges of a study, in the order written.

    written: the block `merge` as plain values. arms: all that are trained. seeds: names of the study's replicates.
    Raises Mistake.
    """
    found = []
    for name, one in spec.merge.items():
        place: Path = ("merge", name)
        check_name("arm", name, place)
        if name in arms:
            raise Mistake(place, f"`{name}` names an arm already; expected another name", at_key=True)
        _check_evaluated(spec, place)
        _check_keys(one, place)
        named = _named(one, spec, arms, place)
        merge = _read(name, one, named, dict(written[name]), arms, seeds, lengths)
        found.append(merge)
    return tuple(found)


def cuts(merge: Merge, treatment: Treatment) -> list[int]:
    """The tokens of the checkpoints that `of: checkpoints` merges, ascending, the last the end of the path.

    Raises Mistake where they do not lie on the path, or not at the end of a batch.
    """
    end = treatment.tokens
    if merge.over >= end:
        said = f"{merge.over:,} tokens are no part of the path of `{merge.arms[0]}`, which has {end:,}; expected fewer"
        raise Mistake((*merge.place, "over"), said)
    if merge.over // merge.every > MOST_PARTS:
        said = f"makes {merge.over // merge.every:,} checkpoints of {merge.over:,} tokens"
        raise Mistake((*merge.place, "every"), f"{said}; expected an interval that makes at most {MOST_PARTS:,}")
    found = list(range(end - merge.over, end + 1, merge.every))
    for tokens in found:
        start = 0
        for stage in treatment.stages:
            if start < tokens <= start + stage.tokens and (tokens - start) % stage.batch_tokens:
                raise Mistake(
                    (*merge.place, "every"),
                    f"puts a checkpoint at token {tokens:,} of `{merge.arms[0]}`, inside a batch of "
                    f"{stage.batch_tokens:,} in `{stage.name}`; expected a multiple of every stage's batch there",
                )
            start += stage.tokens
    return found


def check_contexts(merge: Merge, arms: Mapping[str, Arm]) -> None:
    """Weights that were trained at other lengths or positions are not averaged here. Raises Mistake."""
    first, *others = _contexts(merge, arms)
    for where, context in others:
        for key in ("length", "rope"):
            if getattr(context, key) != getattr(first[1], key):
                words = f"were trained at other {'lengths' if key == 'length' else 'positions'} (context.{key})"
                key_of = "over" if merge.of == "checkpoints" else "arms"
                raise Mistake(
                    (*merge.place, key_of),
                    f"{first[0]} and {where} {words}, which is not merged here; expected parts with equal context",
                )


def _contexts(merge: Merge, arms: Mapping[str, Arm]) -> Iterator[tuple[str, Context]]:
    """Where each part was trained last, in words, and its context there."""
    if merge.of != "checkpoints":
        for name in merge.arms:
            yield f"`{name}`", arms[name].treatment.stages[-1].context
        return
    treatment = arms[merge.arms[0]].treatment
    for tokens in cuts(merge, treatment):
        start = 0
        for stage in treatment.stages:
            if start < tokens <= start + stage.tokens:
                yield f"token {tokens:,} of `{merge.arms[0]}`", stage.context
            start += stage.tokens


def _check_evaluated(spec: StudySpec, place: Path) -> None:
    measures = spec.eval.suites or spec.eval.tasks or spec.eval.held_out != "none"
    if measures and END not in spec.eval.labels:
        raise Mistake(place, "is a model at the end of training, where nothing is evaluated; expected `end` in eval.at")


def _check_keys(spec: MergeSpec, place: Path) -> None:
    """Keys of another kind of merge, and pairs of which one is needed."""
    for key in _KEYS:
        if getattr(spec, key) is not None and key not in _TAKES[spec.of]:
            said = f"`of: {spec.of}` takes no `{key}`; {nearest(key, ('of', *_TAKES[spec.of]))}"
            raise Mistake((*place, key), said, at_key=True)
    if spec.of == "arms" and spec.arms is None:
        raise Mistake((*place, "arms"), "is missing; expected a list of at least two arms that are trained")
    if spec.of != "checkpoints":
        return
    for key, such in (("over", "~2B"), ("every", "~0.25B")):
        if getattr(spec, key) is None:
            raise Mistake((*place, key), f"is missing; expected tokens, such as {such}")
    if (spec.decay is None) == (spec.weights is None):
        both = "holds `decay` and `weights`" if spec.weights else "does not say how the checkpoints are weighted"
        raise Mistake(place, f"{both}; expected one of decay, weights")
    if spec.to is not None and spec.decay is None:
        raise Mistake((*place, "to"), "belongs to `decay`, not to `weights`; expected it there", at_key=True)
    if spec.decay == "exponential" and not spec.to:
        raise Mistake((*place, "to"), "an exponential decay never comes to 0; expected a number above 0, such as 0.1")


def _named(spec: MergeSpec, study: StudySpec, arms: Mapping[str, Arm], place: Path) -> tuple[str, ...]:
    """The arms that a merge is made of."""
    if spec.of == "arms":
        assert spec.arms is not None
        listed = [((*place, "arms", index), name) for index, name in enumerate(spec.arms)]
    else:
        listed = [((*place, "arm"), spec.arm or "default")]
    for index, (where, name) in enumerate(listed):
        check_trained(name, study, arms, where)
        if name in (before for _, before in listed[:index]):
            raise Mistake(where, f"`{name}` is listed twice; expected it once (`weights` says how much it counts)")
    return tuple(name for _, name in listed)


def check_trained(name: str, study: StudySpec, arms: Mapping[str, Any], where: Path) -> None:
    """Raise Mistake unless `name` is an arm that is trained."""
    if name in study.merge:
        raise Mistake(where, f"`{name}` is a merge; expected an arm that is trained. {nearest('', arms)}")
    if name in (control.name for control in study.controls):
        raise Mistake(where, f"`{name}` is a control; expected an arm of the study. {nearest('', arms)}")
    if name not in arms:
        raise Mistake(where, f"there is no arm `{name}`; {nearest(name, arms)}")


def _read(
    name: str,
    spec: MergeSpec,
    named: tuple[str, ...],
    changes: Mapping[str, Any],
    arms: Mapping[str, Arm],
    seeds: Sequence[str],
    lengths: Lengths,
) -> Merge:
    place: Path = ("merge", name)
    over = every = 0
    if spec.of == "checkpoints":
        assert spec.over is not None and spec.every is not None
        batch = arms[named[0]].treatment.stages[-1].batch_tokens
        every = lengths.fit(spec.every, batch, (*place, "every"))
        over = _whole_intervals(spec.over, every, (*place, "over"), lengths)
    weights = None if spec.weights is None else tuple(exact(weight) for weight in spec.weights)
    to = exact(spec.to or 0.0)
    merge = Merge(name, spec.of, named, weights, {"merge": changes}, over, every, spec.decay, to)
    if spec.of == "seeds" and len(seeds) < 2:
        raise Mistake(place, "merges the runs of an arm over its seeds, and the study has one; expected `seeds`")
    parts = {"seeds": len(seeds), "arms": len(named), "checkpoints": over // every + 1 if every else 0}[spec.of]
    if weights is not None and len(weights) != parts:
        what = {"seeds": "seeds", "arms": "arms", "checkpoints": "checkpoints"}[spec.of]
        raise Mistake((*place, "weights"), f"has {len(weights)} weights for {parts} {what}; expected one each")
    check_contexts(merge, arms)
    return merge


def _whole_intervals(over: TokenCount, every: int, path: Path, lengths: Lengths) -> int:
    """`over` in whole intervals, rounded after `~`."""
    count = over.value / every
    if not over.about and count.denominator != 1:
        low = int(count) * every
        nearest_two = f"{low:,} and {low + every:,}" if low else f"{every:,} and {2 * every:,}"
        raise Mistake(
            path,
            f"{over.text} is not a whole number of intervals of {every:,} tokens (`every`); expected one of the "
            f"nearest, {nearest_two}, or ~{over.text} to round",
        )
    found = int(count + Fraction(1, 2)) * every
    if not found:
        raise Mistake(path, f"{over.text} is less than half of `every`, {every:,} tokens; expected at least that")
    if found != over.value:
        named = ".".join(map(str, path))
        lengths.notes[f"{named}: {over.text} rounded to {found:,} ({found // every:,} intervals of {every:,})"] = None
    return found
