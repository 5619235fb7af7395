"""`ablate run --executor slurm`: submits what the study needs and returns, or stays until the queue is empty.

The same plan, records, checks and report as with every other executor; only who does the work differs.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.launch import admit, limits, outcome, prepare, tracking
from harness.launch.lock import locked
from harness.launch.record import settings
from harness.launch.run import Report, build_report, ready, why_held
from harness.launch.slurm import client, snapshot
from harness.launch.slurm.resources import Resources
from harness.launch.slurm.submit import check_place
from harness.launch.slurm.submitit_executor import clients_missing, environment_without_slurm
from harness.launch.slurm.tick import Tick, Ticked, items
from harness.launch.stop import Stop
from harness.launch.work import Failure, Result
from harness.study.errors import UserError

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.launch.progress import Silent
    from harness.launch.run import Options
    from harness.launch.slurm.decide import Held
    from harness.store.layout import Folder
    from harness.study import Study

FIRST_POLL, LONGEST_POLL = 2.0, 30.0  # seconds between two looks at the queue while `--wait` stays


def bring(study: Study, options: Options, listener: Silent, last: bool = False) -> Report:
    """Bring the queue to what the study needs. last: in the job that comes after all others. Raises UserError."""
    missing = clients_missing()
    if missing:
        raise UserError(
            f"`{missing[0]}` is not on this machine, so nothing can be submitted to Slurm from here. Run this on a "
            "login node of the cluster, or train here with `--executor local`."
        )
    here = limits.check_cluster(study.spec.launch)
    if here is not None:
        listener.note(here)
    ignored = environment_without_slurm()
    for name, value in ignored.items():
        listener.note(f"{name}={value} is not used: what is asked of Slurm stands in the study, under launch.slurm")
    folder = prepare.folder_of(study, options.folder)
    admit.check_folder(folder, options.share)
    check_place(folder)
    trackers = tracking.targets_here(study, listener.note) if options.track else []
    stays = options.wait or last
    if trackers and not stays:
        listener.note("trackers: the last job hands the runs on; `--wait` does so while they train")
    with locked(folder, stays, listener.note):
        queue = client.look(folder)
        prepared = ready(study, folder, options, listener)
        with tracking.following(folder, trackers if stays else [], listener.note), Stop() as stop:
            return _rounds(prepared, queue, options, listener, stop)


def _rounds(prepared: Prepared, queue: client.Queue, options: Options, listener: Silent, stop: Stop) -> Report:
    """Ticks until nothing is left in the queue, one without `--wait`."""
    ticked = _round(prepared, queue, options, listener)
    if ticked.beside:
        listener.note(beside_line(ticked.beside, prepared.folder))
    pause, said, problem = FIRST_POLL, "", ""
    while options.wait and not ticked.quiet:
        line = problem or f"{_counts(ticked)}; {_done(prepared)} of {len(prepared.plan.runs)} runs done"
        if line != said:
            listener.note(line)
            pause, said = FIRST_POLL, line
        _sleep(pause, stop)
        if stop.signal is not None:
            break
        pause = min(LONGEST_POLL, pause * 1.5)
        try:
            queue = client.look(prepared.folder)
            prepared = prepare.again(prepared, options.share)
            ticked, problem = _round(prepared, queue, options, listener), ""
        except client.Unreachable as error:  # a controller that is started again answers in a while
            problem = f"waiting for Slurm: {error}"
    if stop.signal is not None:
        listener.note("the jobs stay in the queue; `ablate cancel` takes them out")
    return _report(prepared, ticked, options, listener, stop.signal)


def _round(prepared: Prepared, queue: client.Queue, options: Options, listener: Silent) -> Ticked:
    """A tick, and a line on what it has submitted."""
    ticked = tick(prepared, queue, options)
    if ticked.submitted:
        listener.note(submitted_line(ticked))
    return ticked


def tick(prepared: Prepared, queue: client.Queue, options: Options) -> Ticked:
    """One tick for a prepared study. Raises UserError before anything is submitted."""
    wanted = items(prepared, options.train)
    Resources(prepared.study.spec.launch, prepared.plan).check(wanted, prepared.plan)
    return Tick(
        prepared,
        queue,
        wanted,
        settings(prepared),
        snapshot.take(prepared.folder),
        options.perform,
        options.yes,
        options.train,
    ).run()


def _sleep(seconds: float, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while stop.signal is None and time.monotonic() < until:
        time.sleep(0.1)


def _report(prepared: Prepared, ticked: Ticked, options: Options, listener: Silent, stopped_by: int | None) -> Report:
    """How the runs stand. The page is written by whoever finds nothing left to do: the last job, as a rule."""
    rest: outcome.End | None = None if ticked.quiet else "queued"
    observed = prepared.seen.observed
    ended = outcome.ended(prepared.plan, observed, results(ticked.held), None, options.train, rest)
    page = build_report(prepared, ended, listener) if ticked.quiet else None
    if stopped_by is not None:
        ended = outcome.Ended(ended.runs, stopped_by)
    return Report(prepared.folder, ended, 0, 0, page, why_held(prepared, ended), ticked)


def results(held: Mapping[str, Held]) -> dict[str, Result]:
    """Items that nobody will do as things are, as failures."""
    return {name: Result("failed", Failure(why.kind, why.reason)) for name, why in held.items()}


def submitted_line(ticked: Ticked) -> str:
    """`submitted 72 items of work as 36 tasks in 2 calls of sbatch (job 12, 13), ...`."""
    tasks = sum(bool(element.items) for one in ticked.submitted for element in one.elements)
    jobs = ", ".join(str(one.job) for one in ticked.submitted[:6])
    more = f" and {len(ticked.submitted) - 6} more" if len(ticked.submitted) > 6 else ""
    calls = _many(len(ticked.submitted), "call")
    return (
        f"submitted {_many(ticked.items, 'item')} of work as {_many(tasks, 'task')} in {calls} of sbatch "
        f"(job {jobs}{more}), and a last one for the report"
    )


def beside_line(beside: Mapping[str, bool], folder: Folder) -> str:
    """What is in the queue and not in the study any more, and how to take it out."""
    alone = [word for word, needed in beside.items() if not needed]
    both = [word for word, needed in beside.items() if needed]
    how = [f"`scancel {' '.join(alone)}` takes it out"] if alone else []
    how += [f"{', '.join(both)} {'do' if len(both) > 1 else 'does'} it after what is needed"] if both else []
    everything = f"`ablate cancel {shlex.quote(str(folder.root))}` takes out all jobs"
    return f"the queue goes on with work that the study does not ask for any more: {'; '.join([*how, everything])}"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _counts(ticked: Ticked) -> str:
    held = f", {len(ticked.held)} items held" if ticked.held else ""
    return f"{ticked.running} jobs running, {ticked.waiting} waiting{held}"


def _done(prepared: Prepared) -> int:
    ended = outcome.ended(prepared.plan, prepared.seen.observed, {}, None, True, "queued")
    return sum(run.end in ("done", "diverged") for run in ended.runs)


def hours_line(ticked: Ticked) -> str:
    """What was spent and is left, and where the figure is from."""
    spent, left = ticked.hours
    return f"GPU-hours: {spent:.3g} used, about {left:.3g} to come ({ticked.basis})"
