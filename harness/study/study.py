"""A loaded study: the file as written, its arms resolved, and a place for every mistake."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path as File
from typing import Any

from harness.study import checks, equal_compute, idle
from harness.study.algebra import DEFAULT, Candidate, expand
from harness.study.apply import Applier
from harness.study.controls import Control, control_arms, resolve_controls
from harness.study.document import Document, load
from harness.study.equal_compute import Cost
from harness.study.errors import Mistake, StudyError
from harness.study.intervals import check_intervals
from harness.study.merges import Merge, resolve_merges
from harness.study.optimizers import check_average
from harness.study.paths import Path, dotted
from harness.study.resolve import Resolver
from harness.study.schema import SourceSpec, StudySpec
from harness.study.treatment import Arm, SeedSet
from harness.study.validate import validate


@dataclass(frozen=True)
class Study:
    """One study, resolved. Every arm's treatment holds exact numbers; equal stages are one object.

    path: the study file; text: the file as written; resolved: the whole document as plain values, after include
    and `--set`. arms: `default` first, then in the order of `ablate`. notes: what was rounded, one line each.
    controls: what must hold before other arms are trained; control_arms: those of them that are trained (A/A).
    merges: arms that are made of others' weights; they are none of `arms`, which are trained.
    unsolved: arms whose length waits for the model (`flops_of`). dropped: arms left out, and why (`over: drop`).
    """

    path: File
    text: str
    resolved: Mapping[str, Any]
    spec: StudySpec
    sources: Mapping[str, SourceSpec]
    arms: tuple[Arm, ...]
    seed_sets: tuple[SeedSet, ...]
    notes: tuple[str, ...]
    document: Document
    candidates: Mapping[str, Candidate]
    controls: tuple[Control, ...] = ()
    control_arms: tuple[Arm, ...] = ()
    merges: tuple[Merge, ...] = ()
    unsolved: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _arms(self) -> Mapping[str, Arm]:
        return {arm.name: arm for arm in (*self.arms, *self.control_arms)}

    def arm(self, name: str) -> Arm:
        """The arm of that name, an A/A arm too; raises KeyError."""
        return self._arms[name]

    @cached_property
    def control_names(self) -> frozenset[str]:
        """Names of the A/A arms."""
        return frozenset(arm.name for arm in self.control_arms)

    def seeds_of(self, arm: str) -> tuple[SeedSet, ...]:
        """The replicates of an arm: the study's, or those that an A/A arm has for itself."""
        own = next((control.seeds for control in self.controls if control.name == arm), ())
        return own or self.seed_sets

    def error(self, mistake: Mistake, arm: str | None = None) -> StudyError:
        """`mistake` with file, line and column. With an arm, the place is the line in `ablate` that makes the arm."""
        candidate = self.candidates.get(arm) if arm is not None else None
        return located(self.document, mistake, candidate)


def load_study(path: File, overrides: Sequence[str] = ()) -> Study:
    """The study at `path` with `--set` overrides (`stages.decay.lr.to=0.1x`). Raises StudyError with the place."""
    document, text = load(File(path), overrides, StudySpec)
    try:
        spec = validate(StudySpec, document.values, lambda mistake: _position(document, mistake))
        checks.check_names(spec)
        sources = {name: checks.resolve_source(name, source) for name, source in spec.sources.items()}
        stages = list(spec.stages)
        checks.check_eval(spec.eval, "eval" in document.values, stages)
        resolver = Resolver(list(sources), checks.stage_check(spec))
        default = Arm(DEFAULT, {}, resolver.treatment(document.values))
        seed_sets = checks.resolve_seeds(spec.seeds, stages, default.treatment.base.from_scratch)
        with _collector_paused():
            candidates = expand(document.values)
        idle.check_inherited(document, candidates)
        names = [DEFAULT, *(arm.name for arm in candidates)]
        checks.check_compare(spec.compare, names, spec)
        checks.check_strategy(spec.launch)
        checks.check_gpu_type(spec.launch)
        checks.check_kernels(spec.launch)
        others = [*spec.merge, *(control.name for control in spec.controls)]
        checks.check_resources(spec.launch.resources, [*names, *others], stages)
    except Mistake as mistake:
        raise document.error(mistake) from None
    with _collector_paused():
        arms, waiting = _arms(candidates, default, document, resolver)
    try:
        check_average(spec.eval.at, (default, *arms))
        check_intervals(spec, (default, *arms), waiting)
        trained = {arm.name: arm for arm in (default, *arms)}
        replicates = [seeds.name for seeds in seed_sets]
        merges = resolve_merges(spec, document.values.get("merge") or {}, trained, replicates, resolver.lengths)
        controls = resolve_controls(spec, list(trained), seed_sets)
    except Mistake as mistake:
        raise document.error(mistake) from None
    return Study(
        path=File(path),
        text=text,
        resolved=document.values,
        spec=spec,
        sources=sources,
        arms=(default, *arms),
        seed_sets=seed_sets,
        notes=tuple(resolver.lengths.notes),
        document=document,
        candidates={candidate.name: candidate for candidate in candidates},
        controls=controls,
        control_arms=control_arms(controls, trained),
        merges=merges,
        unsolved=tuple(waiting),
    )


def without(study: Study, over: Mapping[str, str]) -> Study:
    """The study without the arms that serve a source too often. over: why, by arm; each was declared `over: drop`.

    Raises StudyError where the comparison or a control rests on one of them.
    """
    named = {"baseline": study.spec.compare.baseline, "control": study.spec.compare.control}
    for key, arm in named.items():
        if arm is not None and arm in over:
            raise study.error(Mistake(("compare", key), f"`{arm}` is left out (`over: drop`): {over[arm]}"))
    for index, control in enumerate(study.controls):
        if control.arm in over:
            message = f"needs `{control.arm}`, which is left out (`over: drop`): {over[control.arm]}"
            raise study.error(Mistake(("controls", index), message))
    for merge in study.merges:
        for name in merge.arms:
            if name in over:
                raise study.error(
                    Mistake(merge.place, f"needs `{name}`, which is left out (`over: drop`): {over[name]}")
                )
    arms = tuple(arm for arm in study.arms if arm.name not in over)
    notes = (*study.notes, *(f"left out: {arm}: {why}" for arm, why in over.items()))
    return replace(study, arms=arms, notes=notes, dropped={**study.dropped, **over})


def at_cost(study: Study, cost: Cost) -> Study:
    """The study with every `flops_of` solved. cost: floating-point operations per token at a context length.

    Raises StudyError where there is no such length.
    """
    if not study.unsolved:
        return study
    resolver = Resolver(list(study.sources), checks.stage_check(study.spec))
    applier = Applier(study.document.values)
    arms = {arm.name: arm for arm in study.arms}
    fixed = {name: arm.treatment for name, arm in arms.items() if name not in study.unsolved}
    notes = list(study.notes)
    for name in study.unsolved:
        candidate = study.candidates[name]
        document = applier.apply(candidate.changes)
        try:
            wanted = equal_compute.asked(document)
            assert wanted is not None, "it was when the study was read"
            other, own = fixed[wanted.arm], arms[name].treatment
            length = equal_compute.solved(wanted, own, other, cost)
            own = resolver.treatment(equal_compute.with_length(document, wanted, length))
            notes.append(equal_compute.note(name, wanted, own, other, cost))
            arms[name] = replace(arms[name], treatment=own)
        except Mistake as mistake:
            raise located(study.document, mistake, candidate) from None
    try:
        check_intervals(study.spec, tuple(arms.values()))
    except Mistake as mistake:
        raise study.error(mistake) from None
    doubled = control_arms(study.controls, arms)
    return replace(study, arms=tuple(arms.values()), notes=tuple(notes), control_arms=doubled, unsolved=())


def _arms(
    candidates: Sequence[Candidate], default: Arm, document: Document, resolver: Resolver
) -> tuple[list[Arm], Mapping[str, equal_compute.Asked]]:
    """Every arm, and those whose length follows from another's cost: they have the study's own length for now."""
    applier = Applier(document.values)
    arms: dict[str, Arm | None] = {}
    waiting: dict[str, equal_compute.Asked] = {}
    for candidate in candidates:
        wanted = _asked(candidate, document, applier) if equal_compute.may_ask(candidate.changes) else None
        if wanted is not None:
            waiting[candidate.name] = wanted
        arms[candidate.name] = None if wanted else _arm(candidate, default, document, resolver, applier)
    treatments = {arm.name: arm.treatment for arm in (default, *arms.values()) if arm is not None}
    lengths = {stage.name: stage.tokens for stage in default.treatment.stages}
    for candidate in candidates if waiting else ():
        if (wanted := waiting.get(candidate.name)) is not None:
            try:
                equal_compute.target(wanted, treatments, waiting)
                changed = equal_compute.with_length(applier.apply(candidate.changes), wanted, lengths[wanted.stage])
                treatment = resolver.treatment(changed)
            except Mistake as mistake:
                raise located(document, mistake, candidate) from None
            arms[candidate.name] = Arm(
                candidate.name, candidate.declared, treatment, candidate.levels, candidate.varied
            )
    return [arm for arm in arms.values() if arm is not None], waiting


def _asked(candidate: Candidate, document: Document, applier: Applier) -> equal_compute.Asked | None:
    try:
        return equal_compute.asked(applier.apply(candidate.changes))
    except Mistake as mistake:
        raise located(document, mistake, candidate) from None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Ten thousand arms are half a million records that all stay; looking for garbage among them costs a third more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def located(document: Document, mistake: Mistake, candidate: Candidate | None) -> StudyError:
    """`mistake` with its place; one that an arm's change causes is placed at that change, and the arm is named."""
    if candidate is None:
        return document.error(mistake)
    origin, exact = _origin(candidate, mistake.path)
    place, _ = document.locate(origin, mistake.at_key and exact)
    return StudyError(str(place), f"{dotted(mistake.path)}: in arm `{candidate.name}`, {mistake.message}")


def _position(document: Document, mistake: Mistake) -> tuple[bool, Any]:
    """Unknown keys first, since they explain what seems to be missing; then in the order of the file."""
    return not mistake.at_key, document.locate(mistake.path, mistake.at_key)[0]


def _arm(candidate: Candidate, default: Arm, document: Document, resolver: Resolver, applier: Applier) -> Arm:
    try:
        treatment = resolver.treatment(applier.apply(candidate.changes))
        idle.check_used(candidate, treatment, default.treatment)
        return Arm(candidate.name, candidate.declared, treatment, candidate.levels, candidate.varied)
    except Mistake as mistake:
        raise located(document, mistake, candidate) from None


def _origin(candidate: Candidate, path: Path) -> tuple[Path, bool]:
    """The path in `ablate` of the change that bears on `path`, and whether it is the very value."""
    for one in candidate.changes:
        inherited: Path = ("train", *path[2:]) if path[:1] == ("stages",) else path
        for written in (path, inherited):
            if written[: len(one.path)] == one.path:
                return (*one.origin, *written[len(one.path) :]), True
    nearest_change = max(candidate.changes, key=lambda one: _shared(one.path, path))
    return nearest_change.origin, False


def _shared(one: Path, other: Path) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
