"""`ablate run`: brings a results folder to what its study asks for. Run twice, the second time does nothing."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.launch import admit, controls, limits, outcome, prepare, space, stamp, tracking
from harness.launch.executor import DebugExecutor, Executor, Job
from harness.launch.items import items_of
from harness.launch.local import LocalExecutor
from harness.launch.lock import locked
from harness.launch.progress import Shown, Silent, tokens
from harness.launch.queue import Queue
from harness.launch.record import record, settings, write_plan
from harness.launch.stop import Stop
from harness.launch.worker import PERFORM, load_perform
from harness.store import plans, states
from harness.store.atomic import WriteFailed, sweep
from harness.store.layout import Folder
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.launch.slurm.tick import Ticked
    from harness.launch.work import Result
    from harness.study import Study


ExecutorName = Literal["local", "debug", "slurm"]


@dataclass(frozen=True)
class Options:
    """What `ablate run` was asked for. folder None: `results/<study>`. jobs None: as the study says.

    wait: for whoever is at work in the folder, instead of leaving; with slurm, also until the jobs have ended.
    train=False evaluates what is there and trains nothing; `suites` are those that it was asked to add. track=False
    hands nothing on to trackers (a rehearsal).
    perform: the work function, for tests of everything else.
    """

    study: Path
    folder: Path | None = None
    overrides: tuple[str, ...] = ()
    executor: ExecutorName = "local"
    jobs: int | None = None
    share: bool = True
    yes: bool = False
    wait: bool = False
    train: bool = True
    suites: tuple[str, ...] = ()
    track: bool = True
    perform: str = PERFORM

    def command(self) -> str:
        """The call that goes on where this one ended."""
        if not self.train:
            suites = [word for suite in self.suites for word in ("--suite", suite)]
            return shlex.join(["ablate", "eval", str(self.folder), *suites])
        words = ["ablate", "run", str(self.study)]
        words += ["-o", str(self.folder)] if self.folder is not None else []
        words += [word for override in self.overrides for word in ("--set", override)]
        words += ["--executor", self.executor] if self.executor != "local" else []
        words += ["--jobs", str(self.jobs)] if self.jobs is not None else []
        words += ["--no-share"] if not self.share else []
        words += ["--yes"] if self.yes else []
        words += ["--wait"] if self.wait else []
        return shlex.join(words)


@dataclass(frozen=True)
class Report:
    """How an `ablate run` ended. report: the page, None when there is none (nothing was trained yet).

    held: why arms are held, in a paragraph; None when none is. ticked: what was done in Slurm; None elsewhere.
    """

    folder: Folder
    ended: outcome.Ended
    trained_tokens: int
    evaluated: int
    report: Path | None
    held: str | None = None
    ticked: Ticked | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder.root),
            "trained_tokens": self.trained_tokens,
            "evaluated": self.evaluated,
            "runs": outcome.to_json(self.ended),
            "report": None if self.report is None else str(self.report),
            "stopped_by": self.ended.signal,
            "held": self.held,
            **({} if self.ticked is None else {"slurm": self.ticked.to_json()}),
        }


def run(options: Options, listener: Silent) -> Report:
    """Resolve, plan, train, evaluate and report. Raises UserError before anything is spent when it should not run."""
    return bring(prepare.load(options.study, options.overrides), options, listener)


def bring(study: Study, options: Options, listener: Silent) -> Report:
    """`run` for a study that is there already."""
    if options.executor == "slurm":
        from harness.launch.slurm.bring import bring as submit

        return submit(study, options, listener)
    cluster = limits.check_here(study.spec.launch) if options.train else None
    folder = prepare.folder_of(study, options.folder)
    admit.check_folder(folder, options.share)
    trackers = tracking.targets_here(study, listener.note) if options.track else []
    with locked(folder, options.wait, listener.note):
        prepared = ready(study, folder, options, listener)
        if cluster is not None:
            listener.note(cluster)
        with tracking.following(folder, trackers, listener.note):
            worked = work(prepared, options, listener)
        after = worked.after
        ended = outcome.ended(after.plan, after.seen.observed, worked.results, worked.signal, options.train)
        report = None if worked.signal is not None else build_report(after, ended, listener)
    return Report(folder, ended, worked.trained_tokens, worked.evaluated, report, why_held(after, ended))


def ready(study: Study, folder: Folder, options: Options, listener: Silent) -> Prepared:
    """Resolve, plan, refuse what should not run, say what a person should know, and record it. The caller holds the
    folder. Raises UserError."""
    admit.check_folder(folder, options.share)
    sweep(folder.root, lambda inside: inside.parent.name != "checkpoints")
    prepared = prepare.resolved_plan(study, folder, options.share, listener.note)
    admit.check(prepared, options.yes)
    for damage in prepared.seen.damage:
        listener.note(f"damaged: {damage}")
    short = space.shortage(prepared.plan, folder)
    if short is not None:
        listener.note(short)
    for finding in admit.found_in_results(prepared):
        listener.note(finding)
    for line in _left_out(prepared):
        listener.note(line)
    record(prepared, options)
    return prepared


def why_held(after: Prepared, ended: outcome.Ended) -> str | None:
    """Why arms wait for a control, in a paragraph; None when none does."""
    held = list(after.plan.held) if ended.held else []
    return controls.paragraph(after.verdicts, held) if held else None


@dataclass
class Worked:
    """What a call has done. after: the plan against what is there now; signal: what stopped it, None if nothing."""

    after: Prepared
    results: dict[str, Result] = field(default_factory=dict)
    trained_tokens: int = 0
    evaluated: int = 0
    signal: int | None = None


def work(prepared: Prepared, options: Options, listener: Silent) -> Worked:
    """Do what the recorded plan says, and where that lets held arms go, do those, too. Raises UserError where the
    folder is gone meanwhile."""
    worked = Worked(prepared)
    while True:
        before = worked.after
        queue, stop = execute(before, options, listener)
        worked.results |= queue.results
        worked.trained_tokens += _trained_tokens(queue)
        worked.evaluated += _evaluated(queue)
        worked.signal = stop.signal
        if not before.folder.plan_json.exists():
            raise UserError(
                f"{before.folder.root} was moved or removed while it was worked in; `ablate run STUDY.yaml -o DIR` "
                "goes on with it where it is now."
            )
        if queue.results:
            worked.after = prepare.again(before, options.share)
        released = options.train and set(before.plan.held) - set(worked.after.plan.held)
        if worked.signal is not None or not released:
            break
        for verdict in worked.after.verdicts:
            listener.note(f"control {verdict.name}: {verdict.sentence}")
        record(worked.after, options)
    full = any(result.failure is not None and result.failure.kind == "disk" for result in worked.results.values())
    if worked.results and not full:
        write_plan(worked.after, options)  # what only the work has shown stands in it now
    for name, seen in worked.after.seen.observed.states.items():
        if seen.outcome in ("trained", "diverged"):
            states.forget_before(before.folder.state(name))
    return worked


def _left_out(prepared: Prepared) -> list[str]:
    """What `ablate eval --suite` has added to the folder and the study does not ask for."""
    before = plans.read_plan(prepared.folder) or {}
    suites = (before.get("asked") or {}).get("suites") or []
    left = [suite for suite in suites if suite not in prepared.study.spec.eval.suites]
    return [f"{suite} was added by `ablate eval`; write it into eval.suites to keep it in the report" for suite in left]


def build_report(prepared: Prepared, ended: outcome.Ended, listener: Silent) -> Path | None:
    """Build the report. Where runs have failed and it cannot be written either, what is said of them comes first."""
    try:
        return stamp.report(prepared, listener.note)
    except WriteFailed as error:
        if not ended.failed:
            raise
        listener.note(str(error))
        return None


def execute(prepared: Prepared, options: Options, listener: Silent) -> tuple[Queue, Stop]:
    """Do what the plan says must be done."""
    seen = prepared.seen.observed.states
    diverged = {name for name, state in seen.items() if state.outcome == "diverged"}
    there = {name for name, state in seen.items() if state.outcome == "trained"}
    items = items_of(prepared.plan, prepared.tasks, diverged, options.train)
    if not options.train:
        items = [item for item in items if item.state in there]
    queue, stop = Queue(items, there, diverged), Stop()
    if not items:
        return queue, stop
    listener.note(_headline(prepared, queue))
    executor = _executor(options, prepared.study)
    with stop, Shown(listener, items):
        executor.run(Job(prepared.folder, queue, settings(prepared)), listener, stop)
    return queue, stop


def _executor(options: Options, study: Study) -> Executor:
    launch = study.spec.launch
    if options.executor == "debug":
        os.environ.setdefault("OMP_NUM_THREADS", str(launch.threads))
        return DebugExecutor(load_perform(options.perform))
    return LocalExecutor(options.jobs or launch.jobs, launch.threads, options.perform)


def _headline(prepared: Prepared, queue: Queue) -> str:
    plan = prepared.plan
    items = queue.items.values()
    return (
        f"{prepared.study.spec.study}: {len(plan.arms)} arms, {len(plan.runs)} runs; "
        f"{tokens(sum(item.tokens for item in items))} tokens to train in "
        f"{sum(item.kind == 'train' for item in items)} segments, "
        f"{sum(item.kind == 'evaluate' for item in items)} states to evaluate, in {prepared.folder.root}"
    )


def _trained_tokens(queue: Queue) -> int:
    return sum(queue.items[name].tokens for name, result in queue.results.items() if result.outcome == "trained")


def _evaluated(queue: Queue) -> int:
    return sum(result.outcome == "evaluated" for result in queue.results.values())
