"""`ablate run --smoke`: a few updates of every distinct shape, one restore, a handful of items: what fails, fails now.

The study is shortened (each stage to four batches, one seed, one arm a shape, two items a task) and run by the same
machinery into a folder of its own. Then the last checkpoint of every segment is taken away and the run repeated: it
must restore from the checkpoint before and come to the same weights. Where nothing is evaluated, only a run's last
segment is: nobody asks for the others' ends again.
"""

from __future__ import annotations

import math
import resource
import shutil
import textwrap
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch import admit, prepare
from harness.launch.progress import Silent, duration
from harness.launch.run import Options, bring
from harness.plan import lint
from harness.plan.render import count, table
from harness.store import states
from harness.store.layout import Folder
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.study import Study
    from harness.study.merges import Merge
    from harness.study.treatment import Arm, LearningRate, Stage, Treatment

BATCHES = 4  # of each stage; a checkpoint after every other one
ITEMS = 2  # of each task, and documents of each held-out source
MARK = ".smoke"  # a file that says that the folder may be replaced


@dataclass(frozen=True)
class Tried:
    """One shape. arm, stage: where it was tried. speed: tokens a second. restored: token from which it was repeated."""

    arm: str
    stage: str
    what: str
    speed: float
    step_seconds: float
    restored: int


@dataclass(frozen=True)
class Smoke:
    """What was tried. problem: the first thing that failed, None when all is well. hours: what the whole study takes at
    these speeds, evaluations left out; None where a speed is missing."""

    folder: Path
    tried: Sequence[Tried]
    tasks: Sequence[str]
    peak_bytes: int
    hours: float | None
    problem: str | None

    @property
    def exit_code(self) -> int:
        return 0 if self.problem is None else 1

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "shapes": [asdict(one) for one in self.tried],
            "tasks": list(self.tasks),
            "peak_bytes": self.peak_bytes,
            "hours": self.hours,
            "problem": self.problem,
        }


def smoke(options: Options, listener: Silent) -> Smoke:
    """Try the study that `options` names. Raises UserError for a study that cannot be run at all."""
    study = prepare.load(options.study, options.overrides)
    real = prepare.folder_of(study, options.folder)
    folder = Folder(real.root.with_name(f"{real.root.name}.smoke"))
    _make_way(folder)
    whole = prepare.planned(study, real, options.share)
    admit.check(whole, yes=True)  # what `run` refuses; the shortened study is compared with nothing
    short = shortened(whole.study)
    asked = replace(options, folder=folder.root, yes=True, wait=False, track=False)
    first = bring(short, asked, listener)
    problem = _failure(first.ended)
    restored: dict[str, tuple[int, str]] = {}
    if problem is None:
        restored = _take_away_the_last(folder, _wanted(prepare.planned(short, folder, options.share)))
        listener.note(f"restoring {len(restored)} segments from the checkpoint before their last")
        problem = _failure(bring(short, asked, listener).ended) or _other_weights(folder, restored)
    again = prepare.planned(short, folder, options.share)
    tried = _tried(again, restored)
    tasks = sorted({f"{item.task.suite}.{item.task.task}" for item in again.plan.evals if item.done})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Smoke(folder.root, tried, tasks, peak, _hours(whole, tried, options), problem)


def shortened(study: Study) -> Study:
    """The study with every stage four batches long, one seed, and as few arms as show every shape."""
    chosen = [_short_arm(arm) for arm in _one_a_shape(study)]
    spec = study.spec
    evaluation = spec.eval.model_copy(update={"limit": ITEMS, "at": _short_points(study)})
    if evaluation.held_out != "none":
        evaluation = evaluation.model_copy(
            update={"held_out": evaluation.held_out.model_copy(update={"documents": ITEMS})}
        )
    batch = math.gcd(*(stage.batch_tokens for arm in chosen for stage in arm.treatment.stages))
    merges = tuple(_short_merge(merge, study) for merge in _merges(study))
    # Stages of four of their own batches may be unequal where the real ones are equal.
    allow = {one.name: list(lint.CODES) for one in (*chosen, *merges)}
    short = spec.model_copy(
        update={
            "study": f"{spec.study}.smoke",
            "eval": evaluation,
            "launch": spec.launch.model_copy(update={"checkpoint_every": 2 * batch}),
            "keep": spec.keep.model_copy(update={"checkpoints": "all"}),
            "compare": spec.compare.model_copy(update={"primary": [], "not_worse": {}, "allow": allow}),
            "controls": [],
            "budget": spec.budget.model_copy(update={"gpu_hours": None}),
        }
    )
    return replace(
        study,
        spec=short,
        arms=tuple(chosen),
        seed_sets=study.seed_sets[:1],
        controls=(),
        control_arms=(),
        merges=merges,
        notes=(),
    )


def _short_points(study: Study) -> list[str]:
    """Where the study evaluates and the end of every stage, so that each segment's end is wanted when it is restored;
    nothing at an interval, which would fall between batches."""
    points = [text for text in study.spec.eval.at if not text.startswith("every")] or ["end"]
    return list(dict.fromkeys([*points, *study.spec.stages]))


def _one_a_shape(study: Study) -> list[Arm]:
    """`default`, the arms that the comparison and the merges name, and each arm that has a shape which none before it
    had, or is the first to start with the base's optimizer, or without."""
    named = {study.spec.compare.baseline, study.spec.compare.control}
    named |= {name for merge in _merges(study) for name in merge.arms}
    seen: set[Hashable] = set()
    chosen = []
    for arm in study.arms:
        new = {arm.treatment.base.optimizer, *map(shape, arm.treatment.stages)} - seen
        if new or arm.name in named:
            seen |= new
            chosen.append(arm)
    return chosen


def _merges(study: Study) -> list[Merge]:
    """The first of each kind."""
    found: dict[str, Merge] = {}
    for merge in study.merges:
        found.setdefault(merge.of, merge)
    return list(found.values())


def _short_merge(merge: Merge, study: Study) -> Merge:
    """The same of what is left: one seed, and of checkpoints the last two."""
    if merge.of == "checkpoints":
        batch = study.arm(merge.arms[0]).treatment.stages[-1].batch_tokens
        return replace(merge, over=batch, every=batch, weights=None if merge.weights is None else merge.weights[:2])
    return replace(merge, weights=None) if merge.pooled else merge


def shape(stage: Stage) -> Hashable:
    """What decides how a stage runs, whatever its length and its rates."""
    sources = tuple(name for name, _ in stage.mixture)
    optimizer = stage.optimizer
    kept = optimizer.name, optimizer.ema is not None, optimizer.skip_spikes is not None  # in a checkpoint
    return stage.context, stage.batch_tokens, stage.precision, kept, sources


def _short_arm(arm: Arm) -> Arm:
    return replace(arm, treatment=_short(arm.treatment))


def _short(treatment: Treatment) -> Treatment:
    stages = tuple(
        replace(stage, tokens=BATCHES * stage.batch_tokens, lr=_short_rates(stage.lr, [stage]))
        for stage in treatment.stages
    )
    return replace(treatment, stages=stages, lr=_short_rates(treatment.lr, treatment.stages))


def _short_rates(lr: LearningRate | None, stages: Sequence[Stage]) -> LearningRate | None:
    """A schedule over shortened stages: a batch of its warm-up, and its last two steps, a batch each, at the end."""
    if lr is None:
        return None
    total, last = BATCHES * sum(stage.batch_tokens for stage in stages), stages[-1].batch_tokens
    factors = lr.factors[-(BATCHES - 2) :]
    milestones = tuple(total - left * last for left in range(len(factors), 0, -1))
    return replace(lr, warmup=min(lr.warmup, stages[0].batch_tokens), milestones=milestones, factors=factors)


def _make_way(folder: Folder) -> None:
    """An empty, marked folder. Raises UserError for one that something else made."""
    root = folder.root
    if root.exists() and not (root / MARK).is_file():
        raise UserError(f"{root} is no smoke folder (it holds no {MARK}); move it away, or choose another -o.")
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    (root / MARK).write_text("Made by `ablate run --smoke`; the next one replaces it.\n", encoding="utf-8")


def _failure(ended: Any) -> str | None:
    for run in ended.runs:
        if run.failure is not None:
            return f"{run.run}: {run.failure}"
        if run.end == "diverged":
            return f"{run.run}: diverged within {BATCHES} updates of a stage"
    return None if ended.exit_code == 0 else "the run did not come to its end"


def _wanted(prepared: Prepared) -> set[str]:
    """States that the plan asks for in their own right, and so again when they are gone."""
    plan = prepared.plan
    return {run.path[-1] for run in plan.runs} | {item.state for item in plan.evals}


def _take_away_the_last(folder: Folder, wanted: set[str]) -> dict[str, tuple[int, str]]:
    """Undo the end of every segment that is wanted. State → (token of the checkpoint that is left, its weights)."""
    left: dict[str, tuple[int, str]] = {}
    for state in folder.all_states():
        if state.id not in wanted:
            continue
        done = states.read_done(state)
        kept = state.checkpoint_tokens()
        if done is not None and done.weights is not None and len(kept) > 1 and kept[-1] == done.tokens:
            state.done.unlink()
            shutil.rmtree(state.checkpoint(kept[-1]))
            left[state.id] = kept[-2], done.weights
    return left


def _other_weights(folder: Folder, restored: dict[str, tuple[int, str]]) -> str | None:
    for name, (tokens, weights) in restored.items():
        done = states.read_done(folder.state(name))
        if done is None or done.weights != weights:
            return f"state {name[:12]}, restored from token {tokens:,}, came to other weights than before"
    return None if restored else "no segment had two checkpoints, so nothing could be restored"


def _tried(prepared: Prepared, restored: dict[str, tuple[int, str]]) -> list[Tried]:
    """The first segment of each shape that was trained, and restored if one was."""
    found: dict[Hashable, Tried] = {}
    for run in prepared.plan.runs:
        if run.made_of:
            continue
        stages = {stage.name: stage for stage in prepared.study.arm(run.arm).treatment.stages}
        for name in run.path:
            segment = prepared.plan.segments[name]
            stage = stages.get(segment.stage)
            done = states.read_done(prepared.folder.state(name))
            if stage is None or done is None or segment.kind != "train":
                continue
            if shape(stage) in found and (found[shape(stage)].restored or name not in restored):
                continue
            speed = float(done.summary.get("tokens_per_second") or 0)
            seconds = stage.batch_tokens / speed if speed else 0.0
            back = restored.get(name, (0, ""))[0]
            found[shape(stage)] = Tried(run.arm, stage.name, _describe(stage), speed, seconds, back)
    return list(found.values())


def _describe(stage: Stage) -> str:
    context = stage.context
    rope = "" if context.rope.type == "base" else f" {context.rope.type}"
    optimizer = stage.optimizer.name + (" ema" if stage.optimizer.ema is not None else "")
    optimizer += " skip_spikes" if stage.optimizer.skip_spikes is not None else ""
    return f"{context.length}{rope} {context.documents} {context.packing}, {stage.precision}, {optimizer}"


def _hours(whole: Prepared, tried: Sequence[Tried], options: Options) -> float | None:
    """Hours of training that the real plan still needs, at the speed of the first try of each stage."""
    speeds = {(one.arm, one.stage): one.speed for one in tried}
    of_shape = {
        shape(stage): speeds[arm.name, stage.name]
        for arm in whole.study.arms
        for stage in arm.treatment.stages
        if (arm.name, stage.name) in speeds
    }
    seconds = 0.0
    for segment in whole.plan.segments.values():
        if not segment.needed or segment.kind != "train":
            continue
        arm = whole.study.arm(whole.plan.runs[segment.run].arm)
        stage = next(stage for stage in arm.treatment.stages if stage.name == segment.stage)
        speed = of_shape.get(shape(stage))
        if not speed:
            return None
        seconds += (segment.tokens_to - segment.start_tokens) / speed
    jobs = options.jobs or whole.study.spec.launch.jobs
    return seconds / jobs / 3600


def text(result: Smoke, width: int = 80) -> str:
    """The result in `width` columns."""
    rows = [["arm", "stage", "shape", "s/step", "tokens/s", "restored at"]]
    for one in result.tried:
        back = f"{one.restored:,}" if one.restored else "-"
        rows.append([one.arm, one.stage, one.what, f"{one.step_seconds:.3g}", count(one.speed), back])
    lines = [table(rows, right=range(3, 6), width=width)]
    lines += textwrap.wrap(f"evaluated: {', '.join(result.tasks) or 'nothing'}", width, subsequent_indent="  ")
    lines.append(f"peak memory of a worker: {result.peak_bytes / 2**30:.2f} GiB")
    if result.hours is not None and result.problem is None:
        at_these = f"the whole study would train for about {duration(result.hours * 3600)} at these speeds"
        lines += textwrap.wrap(f"{at_these} (an extrapolation from {BATCHES} updates; without evaluations)", width)
    lines += textwrap.wrap(f"failed: {result.problem}" if result.problem else f"all well; {result.folder}", width)
    return "\n".join(lines)
