"""What may not be compared, or only with care. Every check reads resolved treatments, never the YAML.

Levels: an error stops `ablate run` unless `compare.allow` names it for the arm; a warning is printed and stands in the
report. Codes are the names that `allow` takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from harness.plan.blend import drawn
from harness.plan.schedule import Piece, end_rate
from harness.study.errors import Mistake, nearest
from harness.study.treatment import Arm, Stage, Treatment

if TYPE_CHECKING:
    from harness.study import Study

CODES: Mapping[str, str] = {
    "undeclared-difference": "an arm differs from the baseline in something that it does not declare",
    "unequal-tokens": "an arm trains on another number of tokens than the baseline, and `compare.equal` is tokens",
    "unequal-flops": "an arm's path costs more than 1 % more or less than the baseline's, and `compare.equal` is flops",
    "schedule-open": "an arm's learning rate has not come to the end of a decay where it is compared",
    "confounded": "an axis also changes another source's tokens, the total or the number of updates",
    "no-control": "no arm spends the same budget on the pre-training mixture",
    "cold-without-warmup": "training starts with a fresh optimizer at a high rate without warm-up",
}


@dataclass(frozen=True)
class Lint:
    """One finding. arm: the arm that it is about, "" for the study."""

    level: Literal["error", "warning"]
    code: str
    arm: str
    message: str


def lint(study: Study, ends: Mapping[str, tuple[Piece, Piece]], flops: Mapping[str, int] | None = None) -> list[Lint]:
    """Findings against the study's baseline, allowed ones left out.

    ends: the first and last piece of the schedule of each arm that is trained, by name. Raises Mistake for an `allow`
    that names no code. flops: of the path of each arm that is trained; None while the model is not known.
    """
    compare = study.spec.compare
    _check_allowed(compare.allow)
    arms = [arm for arm in study.arms if arm.name in ends or arm.name == compare.baseline]
    baseline = next(arm for arm in study.arms if arm.name == compare.baseline)
    found: list[Lint] = []
    facts = _Facts(baseline, study.sources)
    for arm in arms:
        if arm is not baseline:
            found += facts.against_baseline(arm, compare.equal)
            if compare.equal == "flops" and flops is not None and arm.name in flops:
                found += _unequal_flops(arm.name, flops[arm.name], baseline.name, flops.get(baseline.name))
        if arm.name in ends:
            first, last = ends[arm.name]
            found += _schedule_open(arm, last)
            found += _cold_without_warmup(arm, first)
    if compare.control is None:
        message = (
            "no `compare.control`: an anneal on the plain pre-training mixture alone moves averages by points "
            "(+4.4 in OLMo 2, 2501.00656), so without an arm that spends the same budget on it, "
            "a gain over the base says little about the data"
        )
        found.append(Lint("warning", "no-control", "", message))
    allowed = compare.allow
    return [item for item in found if item.code not in allowed.get(item.arm or compare.baseline, ())]


def _check_allowed(allow: Mapping[str, Sequence[str]]) -> None:
    for arm, codes in allow.items():
        for index, code in enumerate(codes):
            if code not in CODES:
                place = ("compare", "allow", arm, index)
                raise Mistake(place, f"`{code}` is no finding that can be allowed; {nearest(code, CODES)}")


class _Facts:
    """What the baseline resolves to, computed once, and each arm held against it."""

    def __init__(self, baseline: Arm, sources: Collection[str]) -> None:
        self._baseline = baseline
        self._tokens = source_tokens(baseline.treatment)
        self._sources = sources
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
        if arm.treatment.lr != self._baseline.treatment.lr:
            found.append(("lr", self._baseline.treatment.lr, arm.treatment.lr))
        declared = (*arm.changes, *self._baseline.changes)
        return [(path, _text(a), _text(b)) for path, a, b in found if not _covered(path, declared)]

    def _side_effects(self, arm: Arm) -> Iterator[str]:
        """What an axis moves besides itself: other sources' tokens, the total, the number of updates."""
        varied = {name for name in arm.levels if name in self._sources}  # a mixture axis is named by its source
        if varied:
            tokens = source_tokens(arm.treatment)
            for name in sorted(set(tokens) | set(self._tokens)):
                before, after = self._tokens.get(name, 0), tokens.get(name, 0)
                if before != after and name not in varied:
                    yield f"{name} {before:,} → {after:,} tokens"
        declares_tokens = any(path.endswith(".tokens") or path == "total" for path in arm.changes)
        total, reference = arm.treatment.tokens, self._baseline.treatment.tokens
        if total != reference and not declares_tokens:
            yield f"the total {reference:,} → {total:,} tokens"
        steps = _steps(arm.treatment)
        if steps != self._steps and total == reference:
            yield f"the number of updates {self._steps:,} → {steps:,}"


def source_tokens(treatment: Treatment) -> dict[str, int]:
    """Tokens of each source that a path consumes, whole rows, as the blend draws them."""
    totals: dict[str, int] = {}
    for stage in treatment.stages:
        for name, tokens in _stage_tokens(stage).items():
            totals[name] = totals.get(name, 0) + tokens
    return totals


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
    "optimizer": {name: name for name in ("lr", "betas", "eps", "weight_decay", "clip")},
    "lr": {"shape": "shape", "start": "from", "end": "to", "warmup": "warmup"},
}


def _covered(path: str, declared: Iterable[str]) -> bool:
    """Whether a declared change says that `path` differs: it, a block around it, or what it is derived from."""
    stage_path = path.split(".", 2)[2] if path.startswith("stages.") else path
    for change in declared:
        if path == change or path.startswith(change + ".") or change.startswith(path + "."):
            return True
        of_train = change.removeprefix("train.")
        if change.startswith("train") and (
            stage_path == of_train or stage_path.startswith(of_train + ".") or of_train.startswith(stage_path + ".")
        ):
            return True
        # `0.1x` and a peak that is not declared follow optimizer.lr; one schedule over all replaces the stages' own.
        if ".lr." in path and (change.endswith("optimizer.lr") or change == "lr" or change.startswith("lr.")):
            return True
    return False


def _unequal_flops(name: str, flops: int, baseline: str, reference: int | None) -> Iterator[Lint]:
    """Whole batches cannot be split, so within 1 % counts as equal."""
    if reference is not None and abs(flops - reference) > 0.01 * reference:
        message = f"costs {flops:.4g} FLOPs, {baseline} {reference:.4g}"
        yield Lint("error", "unequal-flops", name, message)


def _schedule_open(arm: Arm, last: Piece) -> Iterator[Lint]:
    """The end is compared: the last piece must be a decay that reaches its `to`, from a rate above it."""
    if last["shape"] == "constant" and last["value"] > 0:
        message = f"ends at a constant rate of {last['value']:g}: the score of an open schedule is not a result"
        yield Lint("error", "schedule-open", arm.name, message)
    elif last.get("at") == "end":
        yield Lint("error", "schedule-open", arm.name, f"ends inside a warm-up, at a rate of {end_rate(last):g}")
    elif last["shape"] != "constant" and last["to"] > last["from"]:
        message = f"its last stage raises the rate from {last['from']:g} to {last['to']:g}"
        yield Lint("error", "schedule-open", arm.name, message)


def _cold_without_warmup(arm: Arm, first: Piece) -> Iterator[Lint]:
    """Adam's first steps with empty moments are of full size whatever the gradient."""
    if arm.treatment.base.optimizer != "cold":
        return
    peak = arm.treatment.stages[0].optimizer.lr
    begins = first["value"] if first["shape"] == "constant" else first["from"]
    if first.get("at") != "end" and begins > 0.1 * peak:
        message = f"starts with a cold optimizer at a rate of {begins:g} without warm-up"
        yield Lint("warning", "cold-without-warmup", arm.name, message)


def _text(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "{" + ", ".join(f"{name}: {float(share):g}" for name, share in value) + "}"
    return "none" if value is None else str(value)
