"""Findings about what arms declare: differences, tokens, FLOPs, and what an axis moves besides itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from harness.plan.blend import drawn
from harness.plan.lint.codes import Lint
from harness.study.treatment import Arm, LearningRate, Optimizer, Stage, Treatment


class Facts:
    """What the baseline resolves to, computed once, and each arm held against it."""

    def __init__(self, baseline: Arm) -> None:
        self._baseline = baseline
        self._tokens = source_tokens(baseline.treatment)
        self._doses = _doses(baseline.treatment)
        self._steps = _steps(baseline.treatment)

    def against_baseline(self, arm: Arm, equal: str) -> Iterator[Lint]:
        tokens, reference = arm.treatment.tokens, self._baseline.treatment.tokens
        if equal == "tokens" and tokens != reference:
            message = f"trains on {tokens:,} tokens, {self._baseline.name} on {reference:,}"
            yield Lint("error", "unequal-tokens", arm.name, message)
        undeclared = self._undeclared(arm)
        if undeclared:
            listed = "; ".join(f"{path}: {a} → {b}" for path, a, b in undeclared[:4])
            yield Lint("error", "undeclared-difference", arm.name, f"differs undeclared from baseline in {listed}")
        side_effects = list(self._side_effects(arm))
        if side_effects:
            yield Lint("warning", "confounded", arm.name, "also changes " + "; ".join(side_effects))

    def _undeclared(self, arm: Arm) -> list[tuple[str, Any, Any]]:
        """Resolved fields that differ and that no declared change covers."""
        found: list[tuple[str, Any, Any]] = []
        for stage, other in zip(arm.treatment.stages, self._baseline.treatment.stages, strict=False):
            if stage is not other:  # stages that both share are one object
                found += _differences(stage, other)
        if _without_lengths(arm.treatment.lr) != _without_lengths(self._baseline.treatment.lr):
            found.append(("lr", self._baseline.treatment.lr, arm.treatment.lr))
        declared = (*arm.changes, *self._baseline.changes)
        stages = tuple(f"stages.{stage.name}." for stage in arm.treatment.stages)
        return [(path, _text(a), _text(b)) for path, a, b in found if not _covered(path, declared, stages)]

    def _side_effects(self, arm: Arm) -> Iterator[str]:
        """What an axis moves besides itself: other sources' tokens, the total, the number of updates."""
        moved = self._moved(arm.treatment) if arm.varied else {}
        for name, said in moved.items():
            if name not in arm.varied:
                yield said
        shifted = set() if arm.varied else self._shifted(arm.treatment)
        if shifted:
            said = ", ".join(said for name, said in self._moved(arm.treatment).items() if name in shifted)
            yield f"{said} (a stage of another length has its own mixture; one on `train` would hold the doses fixed)"
        declares_tokens = any(path.endswith(".tokens") or path == "total" for path in arm.changes)
        total, reference = arm.treatment.tokens, self._baseline.treatment.tokens
        if total != reference and not declares_tokens:
            yield f"the total {reference:,} → {total:,} tokens"
        steps = _steps(arm.treatment)
        if steps != self._steps and total == reference:
            yield f"the number of updates {self._steps:,} → {steps:,}"

    def _moved(self, treatment: Treatment) -> dict[str, str]:
        """Both numbers of each source whose tokens differ from the baseline's."""
        tokens = source_tokens(treatment)
        both = {name: (self._tokens.get(name, 0), tokens.get(name, 0)) for name in sorted({*tokens, *self._tokens})}
        return {name: f"{name} {a:,} → {b:,} tokens" for name, (a, b) in both.items() if a != b}

    def _shifted(self, treatment: Treatment) -> set[str]:
        """The sources that, at one total and the same mixtures, have another dose because stages have other lengths.

        By the declared shares: what is drawn is in whole rows, so that equal doses may be a row apart.
        """
        stages, others = treatment.stages, self._baseline.treatment.stages
        if stages == others or treatment.tokens != self._baseline.treatment.tokens:
            return set()
        if [stage.mixture for stage in stages] != [stage.mixture for stage in others]:
            return set()
        doses = _doses(treatment)
        return {name for name in doses if doses[name] != self._doses[name]}


def source_tokens(treatment: Treatment) -> dict[str, int]:
    """Tokens of each source that a path consumes, whole rows, as the blend draws them."""
    totals: dict[str, int] = {}
    for stage in treatment.stages:
        for name, tokens in _stage_tokens(stage).items():
            totals[name] = totals.get(name, 0) + tokens
    return totals


def never_drawn(arm: Arm) -> Iterator[Lint]:
    """A source whose share is too small for a single row of a stage: declared, and never seen there."""
    for stage in arm.treatment.stages:
        served = _stage_tokens(stage)
        for name, share in stage.mixture:
            if not served[name]:
                rows = stage.tokens // stage.context.length
                message = f"`{stage.name}` gives `{name}` a share of {float(share):g}, and none of its {rows:,} rows"
                yield Lint("warning", "never-drawn", arm.name, f"{message} (of {stage.context.length:,} tokens)")


def _doses(treatment: Treatment) -> dict[str, Fraction]:
    """Tokens of each source by the declared shares."""
    doses: dict[str, Fraction] = {}
    for stage in treatment.stages:
        for name, share in stage.mixture:
            doses[name] = doses.get(name, Fraction(0)) + share * stage.tokens
    return doses


def _stage_tokens(stage: Stage) -> dict[str, int]:
    return _mixture_tokens(stage.mixture, stage.tokens // stage.context.length, stage.context.length)


@lru_cache(maxsize=100_000)  # arms share few distinct mixtures
def _mixture_tokens(mixture: tuple[tuple[str, Fraction], ...], rows: int, length: int) -> dict[str, int]:
    by_name = sorted(mixture)  # as the loader draws them
    counts = drawn([share for _, share in by_name], rows)
    return {name: count * length for (name, _), count in zip(by_name, counts, strict=True)}


def _steps(treatment: Treatment) -> int:
    return sum(stage.tokens // stage.batch_tokens for stage in treatment.stages)


def _differences(stage: Stage, other: Stage) -> Iterator[tuple[str, Any, Any]]:
    """(path, other's value, stage's value) of the fields of one stage that differ.

    Lengths that follow from `rest`, and tokens that follow from shares, are the matter of `confounded`.
    """
    prefix = f"stages.{stage.name}."
    if stage.name != other.name:
        yield "stages", other.name, stage.name
    for name in ("batch_tokens", "precision", "mixture"):
        if getattr(stage, name) != getattr(other, name):
            yield prefix + name, getattr(other, name), getattr(stage, name)
    for block, names in _BLOCKS.items():
        one, another = getattr(stage, block), getattr(other, block)
        if one is another or one == another:
            continue
        for name, path in names.items():
            a, b = getattr(another, name, None), getattr(one, name, None)
            if a != b:
                yield f"{prefix}{block}.{path}", a, b


_BLOCKS = {
    "context": {name: name for name in ("length", "documents", "packing", "rope")},
    "optimizer": {field.name: field.name for field in fields(Optimizer)},
    "lr": {
        "shape": "shape",
        "start": "from",
        "end": "to",
        "warmup": "warmup",
        "warmup_from": "warmup_from",
        "exponent": "exponent",
        "factors": "factors",  # milestones are lengths: they follow the schedule's
    },
}


def _without_lengths(lr: LearningRate | None) -> LearningRate | None:
    """A schedule over all stages without what follows from the length of the path."""
    return None if lr is None else replace(lr, milestones=())


def _covered(path: str, declared: Iterable[str], stages: Iterable[str]) -> bool:
    """Whether a declared change says that `path` differs: it, a block around it, or what it is derived from.

    stages: the beginnings of what lies in a stage; a name may hold dots.
    """
    stage_path = path.removeprefix(max((one for one in stages if path.startswith(one)), key=len, default=""))
    for change in declared:
        if path == change or path.startswith(change + ".") or change.startswith(path + "."):
            return True
        of_train = change.removeprefix("train.")
        if change.startswith("train") and (
            stage_path == of_train or stage_path.startswith(of_train + ".") or of_train.startswith(stage_path + ".")
        ):
            return True
        # `0.1x` and a peak that is not declared follow optimizer.lr; one schedule over all replaces the stages' own.
        # What an optimizer or a shape has by default follows its name.
        if ".optimizer." in path and change.endswith("optimizer.name"):
            return True
        if path.endswith((".lr.exponent", ".lr.factors")) and change.endswith("lr.shape"):
            return True
        if ".lr." in path and (change.endswith("optimizer.lr") or change == "lr" or change.startswith("lr.")):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Made:
    """A merged arm. tokens: trained to make a run of it, what its parts share counted once.

    ends: the arms whose ends are merged, whose schedules must therefore be closed; none for checkpoints of a path at a
    constant rate, where the mean is the decay.
    """

    tokens: int
    ends: tuple[str, ...]


def unequal_merge(name: str, tokens: int, baseline: Arm, equal: str) -> Iterator[Lint]:
    """What a merged run cost to make: the paths of all runs that it is made of, whole and what they share once, against
    the baseline's one."""
    reference = baseline.treatment.tokens
    if equal == "tokens" and tokens != reference:
        message = f"is made of runs that train on {tokens:,} tokens together, {baseline.name} on {reference:,}"
        yield Lint("error", "unequal-tokens", name, message)


def unequal_flops(name: str, flops: int, baseline: str, reference: int | None) -> Iterator[Lint]:
    """Whole batches cannot be split, so within 1 % counts as equal."""
    if reference is not None and abs(flops - reference) > 0.01 * reference:
        message = f"costs {flops:.4g} FLOPs, {baseline} {reference:.4g}"
        yield Lint("error", "unequal-flops", name, message)


def _text(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "{" + ", ".join(f"{name}: {float(share):g}" for name, share in value) + "}"
    return "none" if value is None else str(value)
