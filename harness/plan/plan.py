"""The plan: study + manifests + what is there → arms, runs, segments, evaluations, and why each will run or not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.plan import cost, reasons, tree
from harness.plan.canonical import digest
from harness.plan.fingerprint import LENGTH, base_state
from harness.plan.lint import Lint, Made, Path, lint
from harness.plan.lint.context import read_lengths
from harness.plan.lint.results import lint_results
from harness.plan.merged import Merged, behind, cuts_of
from harness.plan.merges import EMA, add_averages
from harness.plan.observed import NOTHING, Observed, TaskRef
from harness.plan.records import BASE, END, BaseState, PlanArm, PlanEval, PlanRun, Point, names_of
from harness.plan.rope import check_evaluated_length, check_ropes
from harness.plan.science import Identities, PathBuilder, Piece, base_science, data_seeds, seeds_change_at
from harness.plan.stale import stale_states, without
from harness.plan.tree import Segment
from harness.study.errors import Mistake

if TYPE_CHECKING:
    from harness.study import Study
    from harness.study.schema.base import BaseSpec
    from harness.study.treatment import Arm, Treatment


@dataclass
class Plan:
    """Everything that `ablate plan` prints and `ablate run` does."""

    study: Study
    identities: Identities
    arms: list[PlanArm]
    runs: list[PlanRun]
    bases: dict[str, BaseState]
    segments: dict[str, Segment]
    evals: list[PlanEval]
    tasks: list[TaskRef]
    totals: dict[str, Any]
    lint: list[Lint]
    shape: cost.ModelShape | None
    orphans: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)  # arm → why it is not trained yet
    observed: Observed = NOTHING

    def kind_of(self, state: str) -> str:
        """`base`, `train` or `merge`."""
        return "base" if state in self.bases else self.segments[state].kind

    def states_of(self, run: PlanRun) -> list[str]:
        """The segments that lead to a run's end, parents first: its path, and for a merged run those of its parts."""
        paths = [*(self.runs[index].path for index in run.made_of), run.path]
        return list(dict.fromkeys(state for path in paths for state in path))

    def _made_of(self, run: PlanRun) -> dict[str, Any]:
        return {"made_of": [self.runs[index].name for index in run.made_of]} if run.made_of else {}

    @property
    def unresolved(self) -> list[str]:
        """Names of what has no manifest yet, and of the arms whose length waits for the model (`flops_of`)."""
        return [*self.identities.unresolved, *(f"the length of {arm}" for arm in self.study.unsolved)]

    def segment_json(self, segment_id: str) -> dict[str, Any]:
        """`segment.json` of a segment or a base state: all that its job needs to know of the path."""
        if segment_id in self.bases:
            fields = {"id": segment_id, "kind": "base", "parent": None, "stage": BASE, "tokens_from": 0, "tokens_to": 0}
            return {**fields, "base": self.bases[segment_id].science, "pieces": []}
        segment = self.segments[segment_id]
        run = self.runs[segment.run]
        seeded = zip(run.pieces, run.data_seeds, strict=True)
        pieces = [piece.as_json(seed) for piece, seed in seeded if piece.start < segment.tokens_to]
        pieces[-1]["end"] = min(pieces[-1]["end"], segment.tokens_to)
        recipe = {} if segment.recipe is None else {"recipe": dict(segment.recipe)}
        return {
            "id": segment.id,
            "kind": segment.kind,
            **recipe,
            "parent": segment.parent,
            "stage": segment.stage,
            "tokens_from": segment.tokens_from,
            "tokens_to": segment.tokens_to,
            "base": self.bases[run.base].science,
            "pieces": pieces,
        }

    @cached_property
    def _changes(self) -> Mapping[str, Mapping[str, Any]]:
        return {arm.name: arm.changes for arm in self.arms}

    @cached_property
    def _evals_of(self) -> Mapping[str, list[PlanEval]]:
        found: dict[str, list[PlanEval]] = {}
        for item in self.evals:
            found.setdefault(item.run, []).append(item)
        return found

    def run_json(self, run: PlanRun) -> dict[str, Any]:
        """`run.json`: the run's path, points and evaluations, of a plan that is complete."""
        return {
            "name": run.name,
            "arm": run.arm,
            "seeds": run.seeds.declared,
            "seed_set": run.seeds.name,
            "changes": dict(self._changes[run.arm]),
            "base": run.base,
            "path": run.path,
            "points": [_point_json(point) for point in run.points],
            **self._made_of(run),
            "evals": [
                {"point": item.label, "key": item.task.key, "suite": item.task.suite, "task": item.task.task}
                for item in self._evals_of.get(run.name, ())
            ],
        }

    def record(self) -> dict[str, Any]:
        """`plan.json`: what `--json` prints, and what the next plan needs to say what changed."""
        plan = {"schema": 1, **self.to_json(), "science": reasons.science_summary(self)}
        for entry, run in zip(plan["runs"], self.runs, strict=True):
            entry["points"] = [_point_json(point) for point in run.points]
        return plan

    def to_json(self) -> dict[str, Any]:
        """The object of `ablate plan --json`."""
        spec = self.study.spec
        return {
            "study": spec.study,
            "question": spec.question,
            "arms": [
                {
                    "name": arm.name,
                    "changes": dict(arm.changes),
                    "fingerprint": arm.fingerprint,
                    "same_as": arm.same_as,
                    "control": arm.control,
                    **({} if arm.merge is None else {"merge": arm.merge}),
                }
                for arm in self.arms
            ],
            "runs": [
                {
                    "name": run.name,
                    "arm": run.arm,
                    "seeds": run.seeds.declared,
                    "seed_set": run.seeds.name,
                    "base": run.base,
                    "path": run.path,
                    "points": [{"label": p.label, "segment": p.segment, "tokens": p.tokens} for p in run.points],
                    **self._made_of(run),
                }
                for run in self.runs
            ],
            "segments": [
                {
                    "id": segment.id,
                    "kind": segment.kind,
                    "parents": [parent for parent in segment.parents if parent in self.segments],
                    "stage": segment.stage,
                    "tokens_from": segment.tokens_from,
                    "tokens_to": segment.tokens_to,
                    "flops": None if segment.flops is None else float(segment.flops),  # beyond 64-bit integers
                    "state": segment.state,
                    "reason": segment.reason,
                }
                for segment in self.segments.values()
            ],
            "evals": [
                {
                    "point": f"{item.run}@{item.label}",
                    "suite": item.task.suite,
                    "task": item.task.task,
                    "state": "reused" if item.done else "new",
                }
                for item in self.evals
            ],
            "totals": self.totals,
            "lint": [vars(item) for item in self.lint],
            "unresolved": self.unresolved,
            "tasks": [
                {"suite": t.suite, "task": t.task, "kind": t.kind, "key": t.key, "headline": t.headline}
                for t in self.tasks
            ],
            "notes": spec.notes,
            "model": _model_json(spec.base, self.shape),
            "compare": spec.compare.model_dump(mode="json"),
            "eval": spec.eval.model_dump(mode="json"),
            "orphans": self.orphans,
            "dropped": [{"arm": arm, "why": why} for arm, why in self.study.dropped.items()],
            "controls": [control.to_json() for control in self.study.controls],
            "held": [{"arm": arm, "reason": reason} for arm, reason in self.held.items()],
        }


def build_plan(
    study: Study,
    identities: Identities,
    base_manifest: Mapping[str, Any] | None = None,
    tasks: Sequence[TaskRef] = (),
    observed: Observed = NOTHING,
    share: bool = True,
    sources: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Plan:
    """The plan of `study` against what is there. Raises StudyError for what only an arm's whole path shows, Mistake for
    what belongs to no arm.

    sources: manifests of those that are resolved.

    share=False gives every run its own segments, named by fingerprint and run: the same work, done as often as asked.
    """
    check_ropes(study.arms, base_manifest, study.error)
    check_evaluated_length(study.spec.eval.max_length, base_manifest)
    shape = cost.shape_of(base_manifest, study.arms[0].treatment.base.model.get("config"))
    builder = PathBuilder(identities)
    runs, arms, bases = _runs(study, builder, identities)
    layouts = {arm.name: _layout(arm.treatment, study.spec.eval.every) for arm in (*study.arms, *study.control_arms)}
    segments, paths = _segments(runs, _trees(runs, layouts, cuts_of(study, arms), share), shape)
    for run, path in zip(runs, paths, strict=True):
        run.path = path
        run.points = _points(layouts[run.arm], run, segments)
    if EMA in study.spec.eval.labels:
        averages = add_averages(runs, segments, shape is not None)
        for run in runs:
            run.points.append(Point(EMA, averages[run.name], run.tokens, averages[run.name]))
    Merged(study, arms, runs, segments, shape is not None).enter()
    if study.spec.stale == "rerun":
        observed = without(observed, stale_states(segments, observed))
    plan = Plan(study, identities, arms, runs, bases, segments, [], list(tasks), {}, [], shape, observed=observed)
    plan.evals = _evals(study, plan, observed)
    reasons.settle(plan, observed)
    plan.totals = _totals(plan)
    trained = [run for run in runs if not run.made_of]
    rates = {
        run.arm: Path(
            [(piece.stage, piece.science["lr"]) for piece in run.pieces],
            run.tokens,
            [piece.end for piece in run.pieces],
        )
        for run in trained
        if run.arm not in study.control_names
    }
    flops = None if shape is None else _path_flops(runs, segments, shape)
    made = _made(arms, runs, segments)
    found = lint_results(plan, observed, share)
    plan.lint = lint(study, names_of(arms), rates, flops, read_lengths(sources, base_manifest), found, made)
    return plan


def _runs(
    study: Study, builder: PathBuilder, identities: Identities
) -> tuple[list[PlanRun], list[PlanArm], dict[str, BaseState]]:
    """Runs of the arms that differ, with their merged pieces; equal arms become one arm with several names."""
    runs: list[PlanRun] = []
    arms: list[PlanArm] = []
    bases: dict[str, BaseState] = {}
    first_with: dict[str, str] = {}
    base_ids: dict[tuple[int, int], str] = {}
    for arm in (*study.arms, *study.control_arms):
        change_at = seeds_change_at(arm.treatment, study.seed_sets[0].from_stage)
        try:
            pieces = builder.pieces(arm.treatment, change_at)
        except Mistake as mistake:
            raise study.error(mistake, arm.name) from None
        base_id = _base_id(arm, study.seed_sets[0].init, identities, bases, base_ids)
        # What two arms must share to be one, whatever the seeds.
        lines = [base_id, str(change_at), *(f"{piece.key} {piece.end}" for piece in pieces)]
        fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:LENGTH]
        control = arm.name in study.control_names
        same_as = arm.name if control else first_with.setdefault(fingerprint, arm.name)
        arms.append(PlanArm(arm.name, arm.changes, fingerprint, None if same_as == arm.name else same_as, control))
        if same_as != arm.name:
            continue
        for seeds in study.seeds_of(arm.name):
            base_id = _base_id(arm, seeds.init, identities, bases, base_ids)
            own = data_seeds(pieces, change_at, seeds.data)
            name = f"{arm.name}/{seeds.name}"
            runs.append(PlanRun(name, arm.name, seeds, base_id, [], [], pieces, own, pieces[-1].end))
    return runs, arms, bases


def _base_id(
    arm: Arm,
    init: int,
    identities: Identities,
    bases: dict[str, BaseState],
    known: dict[tuple[int, int], str],
) -> str:
    base = arm.treatment.base
    name = known.get((id(base), init))
    if name is None:
        science = base_science(base, identities, init)
        name = base_state(science)
        bases.setdefault(name, BaseState(name, science, needed=False))
        known[id(base), init] = name
    return name


def _trees(
    runs: Sequence[PlanRun],
    layouts: Mapping[str, tuple[tuple[str, int], ...]],
    merged: Mapping[str, set[int]],
    share: bool,
) -> list[tree.Tree]:
    """The tree of all runs, or (share=False) a tree for each. A run needs a state wherever it has a label, and where
    its weights go into a merge."""
    cuts = {
        arm: tuple(sorted({tokens for _, tokens in layout} | merged.get(arm, set()))) for arm, layout in layouts.items()
    }
    paths = [tree.Path(run.base, run.pieces, run.data_seeds, cuts[run.arm]) for run in runs]
    return [tree.build(paths)] if share else [tree.build([path]) for path in paths]


def _segments(
    runs: Sequence[PlanRun], trees: Sequence[tree.Tree], shape: cost.ModelShape | None
) -> tuple[dict[str, Segment], list[list[str]]]:
    """All segments, and each run's path through them. Where each run has a tree, its states carry its name too."""
    if len(trees) == 1:
        segments, paths = trees[0].segments, trees[0].of_run
    else:
        segments, paths = {}, []
        for index, own in enumerate(trees):
            alias = {name: digest([name, runs[index].name])[: len(name)] for name in own.segments}
            for found in own.segments.values():
                found.id, found.parent, found.run = alias[found.id], alias.get(found.parent, found.parent), index
                segments[found.id] = found
            paths.append([alias[name] for name in own.of_run[0]])
    if shape is not None:
        known: dict[tuple[int, int, int], int] = {}  # the seeds of an arm have their pieces in common
        for segment in segments.values():
            pieces = runs[segment.run].pieces
            key = (id(pieces), segment.tokens_from, segment.tokens_to)
            if key not in known:
                known[key] = _flops(pieces, segment.tokens_from, segment.tokens_to, shape)
            segment.flops = known[key]
    return segments, paths


def _flops(pieces: Sequence[Piece], start: int, end: int, shape: cost.ModelShape) -> int:
    """Floating-point operations of the tokens [start, end) of a path."""
    return sum(
        shape.flops_per_token(piece.science["context"]["length"]) * (min(piece.end, end) - max(piece.start, start))
        for piece in pieces
        if piece.start < end and piece.end > start
    )


def _layout(treatment: Treatment, every: int | None) -> tuple[tuple[str, int], ...]:
    """(label, tokens) of the ends of stages and the declared multiples, in path order, then the end."""
    ends: dict[int, str] = {}
    at = 0
    for stage in treatment.stages:
        at += stage.tokens
        ends[at] = stage.name
    multiples = set(range(every, at, every)) if every else set()
    labels = [(label, tokens) for tokens, label in ends.items()] + [(str(tokens), tokens) for tokens in multiples]
    return (*sorted(labels, key=lambda item: (item[1], item[0].isdigit())), (END, at))


def _points(layout: Sequence[tuple[str, int]], run: PlanRun, segments: Mapping[str, Segment]) -> list[Point]:
    """The base and every labelled state of a run, in path order."""
    ends = {segments[name].tokens_to: name for name in run.path}
    labelled = [Point(label, ends[tokens], tokens, ends[tokens]) for label, tokens in layout]
    return [Point(BASE, None, 0, run.base), *labelled]


def _evals(study: Study, plan: Plan, observed: Observed) -> list[PlanEval]:
    evals: list[PlanEval] = []
    for run in plan.runs:
        for point in run.points:
            if not is_evaluated(study, point):
                continue
            seen = observed.states.get(point.state)
            weights = seen.weights if seen is not None and seen.outcome == "trained" else None
            for task in plan.tasks:
                if task.for_reading and not (point.label == END and _is_read(study, run)):
                    continue
                done = weights is not None and (weights, task.key) in observed.evaluations
                evals.append(PlanEval(run.name, point.label, point.state, task, done))
    return evals


def is_evaluated(study: Study, point: Point) -> bool:
    """Whether the study evaluates what is at a point, should it have anything to evaluate with."""
    return point.label in study.spec.eval.labels or bool(study.spec.eval.every and point.label.isdigit())


def _is_read(study: Study, run: PlanRun) -> bool:
    """Whether what the run's model writes is wanted: one run an arm, none of an arm that checks the study itself."""
    first = run.seeds.name == study.seed_sets[0].name or bool(run.seeds.pooled)
    return first and run.arm not in study.control_names


def _made(arms: Sequence[PlanArm], runs: Sequence[PlanRun], segments: Mapping[str, Segment]) -> dict[str, Made]:
    """What the lint must know of each merged arm."""
    kinds = {arm.name: arm.merge for arm in arms}
    found: dict[str, Made] = {}
    for run in runs:
        if run.made_of and run.arm not in found:
            parts = tuple(dict.fromkeys(runs[index].arm for index in run.made_of))
            tokens = sum(segment.tokens_to - segment.tokens_from for segment in behind(run, runs, segments))
            found[run.arm] = Made(tokens, parts if kinds[run.arm] != "checkpoints" else ())
    return found


def _path_flops(runs: Sequence[PlanRun], segments: Mapping[str, Segment], shape: cost.ModelShape) -> dict[str, int]:
    """Floating-point operations of each arm's whole path, shared or not; of a merge those of all that it is made of."""
    found: dict[str, int] = {}
    for run in runs:
        if run.arm in found:
            continue
        if run.made_of:
            found[run.arm] = sum(segment.flops or 0 for segment in behind(run, runs, segments))
        else:
            found[run.arm] = _flops(run.pieces, 0, run.tokens, shape)
    return found


def _totals(plan: Plan) -> dict[str, Any]:
    segments = plan.segments.values()
    known = plan.shape is not None
    flops = sum(segment.flops or 0 for segment in segments) if known else None
    to_train = [segment for segment in segments if segment.needed]
    return {
        "arms": len(plan.arms),
        "runs": len(plan.runs),
        "segments": len(plan.segments),
        "tokens": sum(segment.tokens_to - segment.tokens_from for segment in segments),
        "tokens_unshared": sum(run.tokens for run in plan.runs if not run.made_of),
        "tokens_to_train": sum(segment.tokens_to - segment.start_tokens for segment in to_train),
        "flops": None if flops is None else float(flops),
        "gpu_hours": None if flops is None else cost.gpu_hours(flops),
        "gpu_hours_basis": cost.GPU_HOURS_BASIS,
        "eval_gpu_hours": None,  # no honest estimate before a task has been timed
        "evals_to_do": sum(not item.done for item in plan.evals),
        "disk_bytes": _disk_bytes(plan, plan.shape) if plan.shape is not None else None,
        "sbatch_calls": 0,
    }


def _disk_bytes(plan: Plan, shape: cost.ModelShape) -> int:
    """Bytes of the checkpoints that stay: one at the end of every segment, those that `keep` names, and the bases."""
    spec = plan.study.spec
    inside = _kept_every(spec.keep.checkpoints, spec.launch.checkpoint_every)
    per_parameter = cost.BYTES_PER_PARAMETER * len(plan.bases)
    for segment in plan.segments.values():
        if segment.kind == "merge":
            per_parameter += cost.WEIGHT_BYTES
            continue
        last = next(piece for piece in plan.runs[segment.run].pieces if piece.end >= segment.tokens_to)
        kept = 1 + ((segment.tokens_to - 1) // inside - segment.tokens_from // inside if inside else 0)
        per_parameter += kept * cost.checkpoint_bytes(last.science["optimizer"])
    return per_parameter * shape.total


def _kept_every(keep: int | str, written: Any) -> int | None:
    """Path tokens between two checkpoints that stay inside a segment, None where none does. written: between two that
    are written."""
    if keep == "last":
        return None
    if keep == "all":
        return None if written is None else int(written)
    return int(keep)


def _model_json(base: BaseSpec, shape: cost.ModelShape | None) -> dict[str, Any]:
    """What is trained, for a caption: the base as it was written, and its parameters where they are known."""
    name = base.model if isinstance(base.model, str) else getattr(base, "run", None)
    if name is None and not isinstance(base.model, str):
        config = getattr(base.model, "config", None) or {}
        name = f"{config.get('like') or config.get('model_type') or 'a model'} from scratch"
    return {"name": name, "parameters": None if shape is None else shape.total}


def _point_json(point: Point) -> dict[str, Any]:
    return {"label": point.label, "segment": point.segment, "tokens": point.tokens, "state": point.state}
