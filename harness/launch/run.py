"""`ablate run`: brings a results folder to what its study asks for. Run twice, the second time does nothing."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.launch import code, outcome, prepare, stamp
from harness.launch.executor import DebugExecutor, Executor, Job
from harness.launch.items import items_of
from harness.launch.local import LocalExecutor
from harness.launch.lock import locked
from harness.launch.progress import Shown, Silent, tokens
from harness.launch.queue import Queue
from harness.launch.resolve import evaluation_settings
from harness.launch.stop import Stop
from harness.launch.worker import PERFORM, load_perform
from harness.store import runs, states
from harness.store.atomic import read_json, write_bytes, write_json
from harness.store.layout import Folder
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.study import Study

EXECUTORS = ("local", "debug")


@dataclass(frozen=True)
class Options:
    """What `ablate run` was asked for. folder None: `results/<study>`. jobs None: as the study says.

    train=False evaluates what is there and trains nothing; `suites` are those that it was asked to add.
    perform: the work function, for tests of everything else.
    """

    study: Path
    folder: Path | None = None
    overrides: tuple[str, ...] = ()
    executor: Literal["local", "debug"] = "local"
    jobs: int | None = None
    share: bool = True
    yes: bool = False
    train: bool = True
    suites: tuple[str, ...] = ()
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
        return shlex.join(words)


@dataclass(frozen=True)
class Report:
    """How an `ablate run` ended. report: the page, None when there is none (nothing was trained yet)."""

    folder: Folder
    ended: outcome.Ended
    trained_tokens: int
    evaluated: int
    report: Path | None

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder.root),
            "trained_tokens": self.trained_tokens,
            "evaluated": self.evaluated,
            "runs": outcome.to_json(self.ended),
            "report": None if self.report is None else str(self.report),
            "stopped_by": self.ended.signal,
        }


def run(options: Options, listener: Silent) -> Report:
    """Resolve, plan, train, evaluate and report. Raises UserError before anything is spent when it should not run."""
    study = prepare.load(options.study, options.overrides)
    folder = prepare.folder_of(study, options.folder)
    check_folder(folder, options.share)
    with locked(folder):
        prepared = prepare.resolved_plan(study, folder, options.share, listener.note)
        check(prepared, options.yes)
        for damage in prepared.seen.damage:
            listener.note(f"damaged: {damage}")
        record(prepared, options)
        queue, stop = execute(prepared, options, listener)
        after = prepare.again(prepared, options.share) if queue.results else prepared
        ended = outcome.ended(after.plan, after.seen.observed, queue.results, stop.signal, options.train)
        report = None if stop.signal is not None else stamp.report(after, listener.note)
    return Report(folder, ended, _trained_tokens(queue), _evaluated(queue), report)


def check_folder(folder: Folder, share: bool) -> None:
    """Refuse to mix shared and unshared states, which have different names, in one folder."""
    entries = list(folder.root.iterdir()) if folder.root.is_dir() else []
    if not [entry for entry in entries if not entry.name.startswith(".")]:
        return
    try:
        shared = bool(read_json(folder.plan_json).get("share", True))
    except (OSError, ValueError):
        shared = True
    if not share and shared:
        raise UserError(f"`--no-share` needs an empty folder, and {folder.root} is not; choose another with -o.")
    if share and not shared:
        raise UserError(
            f"{folder.root} was made with `--no-share`; add `--no-share`, or choose another folder with -o."
        )


def check(prepared: Prepared, yes: bool) -> None:
    """Refuse what cannot be compared, and what costs more than the study's budget (unless `yes`)."""
    errors = [item for item in prepared.plan.lint if item.level == "error"]
    if errors:
        found = "\n".join(f"  {item.code}{f' [{item.arm}]' if item.arm else ''}: {item.message}" for item in errors)
        first = errors[0]
        raise UserError(
            f"the study cannot be compared as it is:\n{found}\n"
            f"Change it, or allow a finding by name: `compare.allow: {{{first.arm or 'default'}: [{first.code}]}}`."
        )
    budget, hours = prepared.study.spec.budget.gpu_hours, prepared.plan.totals["gpu_hours"]
    if budget is not None and hours is not None and hours > budget and not yes:
        raise UserError(
            f"the study takes about {hours:.3g} GPU-hours ({prepared.plan.totals['gpu_hours_basis']}), more than its "
            f"`budget.gpu_hours: {budget:g}`; raise the budget, or run it with `--yes`."
        )


def record(prepared: Prepared, options: Options) -> None:
    """Write study.yaml, plan.json, the runs and the segments that will be worked on."""
    folder, plan = prepared.folder, prepared.plan
    if not folder.study_yaml.exists() or folder.study_yaml.read_text(encoding="utf-8") != prepared.study.text:
        write_bytes(folder.study_yaml, prepared.study.text.encode())
    write_plan(prepared, options)
    for run in plan.runs:
        runs.write_run(folder, plan.run_json(run))
    if not options.train:
        return
    needed = [base.id for base in plan.bases.values() if base.needed]
    needed += [segment.id for segment in plan.segments.values() if segment.needed]
    for name in needed:
        state = folder.state(name)
        states.write_segment(state, plan.segment_json(name))
        seen = prepared.seen.observed.states.get(name)
        if seen is not None and seen.outcome == "damaged":
            state.done.unlink(missing_ok=True)  # it says what is not so; the damage was named


def write_plan(prepared: Prepared, options: Options) -> None:
    """Write plan.json unless it is there already: the plan, and which call it answers."""
    folder = prepared.folder
    asked = {"file": os.path.relpath(options.study, folder.root), "set": list(options.overrides)}
    value = {**prepared.plan.record(), "share": options.share, "asked": asked}
    try:
        if read_json(folder.plan_json) == value:
            return
    except (OSError, ValueError):
        pass
    write_json(folder.plan_json, value)


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


def settings(prepared: Prepared) -> dict[str, Any]:
    """What every order carries: numerics, checkpoints, evaluation, code."""
    spec = prepared.study.spec
    every = spec.launch.checkpoint_every
    return {
        "device": spec.launch.device,
        "threads": spec.launch.threads,
        "micro_batch": spec.launch.micro_batch,
        "checkpoint_every": None if every is None else int(every),
        "keep": spec.keep.checkpoints,
        "code": code.provenance(),
        "evaluation": asdict(evaluation_settings(prepared.study)),
    }


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
