"""`ablate status`: how every run stands, from markers and metrics; a process list says nothing of training."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.launch.lock import at_work
from harness.launch.progress import duration, tokens
from harness.plan.render import table
from harness.store import attempts, evaluations, metrics, plans, processes, runs, states
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged
from harness.store.states import Done
from harness.store.tracking import read_standings
from harness.study.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.launch.slurm.standing import Standings

SILENT_SECONDS = 60.0  # where a plan says nothing of `launch.silent_after`


@dataclass(frozen=True)
class RunStatus:
    """One run. state: done, diverged, failed, damaged, training, stopped, silent, evaluating, unevaluated, waiting,
    or held (by a control of the study); in Slurm also queued, starting, held (with the reason), cancelled, or lost (the
    next tick submits it again). orphan: the study has it no more.

    detail: why, or how far. tokens, of: of the path. eta: seconds of training left of the running segment's path.
    """

    name: str
    state: str
    detail: str
    tokens: int
    of: int
    step: int | None
    tokens_per_second: float | None
    loss: float | None
    eta: float | None
    attempts: int
    checkpoint: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Segment:
    """What a segment's folder says."""

    state: str
    detail: str
    tokens: int
    row: Mapping[str, Any] | None
    attempts: int
    checkpoint: int | None


def read_plan(folder: Folder) -> dict[str, Any]:
    """plan.json. Raises UserError when `folder` is no results folder."""
    plan = plans.read_plan(folder)
    if plan is None:
        raise UserError(
            f"{folder.root} is not a results folder: it has no readable plan.json. "
            "`ablate run STUDY.yaml -o DIR` makes one."
        )
    return plan


def run_of(folder: Folder, plan: Mapping[str, Any], arm: str, seeds: str = "") -> dict[str, Any]:
    """The run of an arm (by any of its names) with a seed set, its only one without. Raises UserError."""
    names = {entry["name"]: entry["same_as"] or entry["name"] for entry in plan["arms"]}
    if arm not in names:
        raise UserError(f"{folder.root} has no arm `{arm}`; {nearest(arm, names)}")
    runs = [run for run in plan["runs"] if run["arm"] == names[arm] and seeds in ("", run["seed_set"])]
    if len(runs) == 1:
        return dict(runs[0])
    choices = [run["name"] for run in plan["runs"] if run["arm"] == names[arm]]
    if not runs:
        raise UserError(f"arm `{arm}` has no seeds `{seeds}`; {nearest(f'{arm}/{seeds}', choices)}")
    raise UserError(f"arm `{arm}` has {len(runs)} runs; name one of them: {', '.join(choices)}")


def status(folder: Folder) -> list[RunStatus]:
    """Every run of the plan, in its order."""
    return look(folder)[0]


def look(folder: Folder) -> tuple[list[RunStatus], str | None]:
    """Every run of the plan, in its order; and why Slurm, which has jobs of theirs, could not be asked, if it could
    not."""
    plan = read_plan(folder)
    seen: dict[str, _Segment] = {}
    bounds = {segment["id"]: segment for segment in plan["segments"]}
    found = [_run(folder, plan, run, bounds, seen) for run in plan["runs"]]
    queue = _standings(folder, plan, {run.state for run in found})
    if queue is not None:
        for at, run in enumerate(plan["runs"]):
            state, detail = queue.of_run(run, found[at].state, found[at].detail)
            found[at] = replace(found[at], state=state, detail=detail)
    problem = None if queue is None else queue.problem
    return [*found, *(_orphan(run, queue) for run in orphans(folder, plan))], problem


def _standings(folder: Folder, plan: Mapping[str, Any], states: Collection[str]) -> Standings | None:
    """What Slurm says of the folder, None where nothing of it was ever submitted, or all is done."""
    if not folder.submissions.is_dir():
        return None
    from harness.launch.slurm.standing import AT_WORK, OPEN, standings

    return standings(folder, plan) if OPEN.union(AT_WORK) & set(states) else None


def orphans(folder: Folder, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs that the study had once, in name order; nothing of theirs was deleted."""
    planned = {run["name"] for run in plan["runs"]}
    names = sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in folder.runs.glob("*/*/run.json"))
    found = [runs.read_run(folder, *name.split("/")) for name in names if name not in planned]
    return [run for run in found if run is not None]


def _orphan(run: Mapping[str, Any], queue: Standings | None) -> RunStatus:
    """queue: what Slurm says, where it was asked: jobs of theirs that nobody has taken out go on."""
    of = run["points"][-1]["tokens"] if run["points"] else 0
    job = None if queue is None else queue.job_of(run)
    detail = "not in the study any more" + (f"; job {job} goes on" if job is not None else "")
    return RunStatus(run["name"], "orphan", detail, 0, of, None, None, None, None, 0, None)


def _run(
    folder: Folder,
    plan: Mapping[str, Any],
    run: Mapping[str, Any],
    bounds: Mapping[str, Mapping[str, Any]],
    seen: dict[str, _Segment],
) -> RunStatus:
    path = run["path"]
    behind = runs.states_behind(plan, run)
    for name in (*behind, *path):
        if name not in seen:
            seen[name] = _segment(folder.state(name), bounds[name], float(plan.get("silent_after", SILENT_SECONDS)))
    segments = [seen[name] for name in path]
    last = _telling(segments)
    if last.state == "waiting":
        last = _stopped_before([seen[name] for name in behind], last)
    of = int(bounds[path[-1]]["tokens_to"])
    state, detail = last.state, last.detail
    if segments[-1].state == "done":
        last = segments[-1]
        state, detail = _evaluated(folder, plan, run)
    why = next((held["reason"] for held in plan.get("held") or () if held["arm"] == run["arm"]), None)
    if why is not None and state in ("waiting", "stopped", "unevaluated"):
        state, detail = "held", str(why)
    rate = last.row.get("tokens_per_second") if last.row is not None and state == "training" else None
    reached = of if segments[-1].state == "done" else last.tokens
    return RunStatus(
        name=run["name"],
        state=state,
        detail=detail,
        tokens=reached,
        of=of,
        step=None if last.row is None else int(last.row["step"]),
        tokens_per_second=rate,
        loss=None if last.row is None else last.row.get("loss"),
        eta=(of - reached) / rate if rate else None,
        attempts=sum(segment.attempts for segment in segments),
        checkpoint=max((s.checkpoint for s in segments if s.checkpoint is not None), default=None),
    )


def _telling(segments: list[_Segment]) -> _Segment:
    """The segment that says how its run stands: the last one that anything was done at, when the end is not there."""
    if segments[-1].state == "done":
        return segments[-1]
    worked_at = [segment for segment in segments if segment.state not in ("waiting", "done")]
    if worked_at:
        return worked_at[-1]
    done = [segment for segment in segments if segment.state == "done"]
    reached = done[-1] if done else segments[0]
    return _Segment("waiting", "", reached.tokens if done else 0, reached.row, 0, reached.checkpoint)


def _stopped_before(behind: Sequence[_Segment], own: _Segment) -> _Segment:
    """How a merge stands that waits: as what it is made of does, where that will never be there."""
    for word in ("diverged", "failed"):
        for part in behind:
            if part.state == word:
                return replace(own, state=word, detail=f"a part of it {word}: {part.detail}")
    return own


def _segment(state: StateFolder, bounds: Mapping[str, Any], patience: float) -> _Segment:
    numbers = state.attempt_numbers()
    row = metrics.last_row(state)
    checkpoint = max(state.checkpoint_tokens(), default=None)
    tokens_now = int(row["tokens"]) if row is not None else int(bounds["tokens_from"])
    try:
        done = _read_done(state)
    except Damaged as reason:
        return _Segment("damaged", str(reason), tokens_now, row, len(numbers), checkpoint)
    if done is not None:
        outcome = "diverged" if done.outcome == "diverged" else "done"
        detail = f"at step {done.step}" if done.outcome == "diverged" else ""
        return _Segment(outcome, detail, done.tokens, row, len(numbers), checkpoint)
    word, detail = _at_work(state, numbers, row, bounds, patience)
    return _Segment(word, detail, tokens_now, row, len(numbers), checkpoint)


def _read_done(state: StateFolder) -> Done | None:
    """The state's marker, its checkpoint looked at; a checkpoint that is not there at all was not kept (a record)."""
    done = states.read_done(state)
    if done is None or done.checkpoint is None or not (state.checkpoints / done.checkpoint).exists():
        return done
    return states.verify_state(state, contents=False)


def _at_work(
    state: StateFolder, numbers: list[int], row: Mapping[str, Any] | None, bounds: Mapping[str, Any], patience: float
) -> tuple[str, str]:
    """How a segment without a marker stands, and its detail. patience: seconds without a step that are not silence."""
    if not numbers:
        return "waiting", ""
    ended = attempts.read_exit(state, numbers[-1])
    if ended is not None:
        if ended["outcome"] == "failed":
            return "failed", f"{ended.get('failure', 'error')}: {ended.get('error', '')}"
        return "stopped", _progress(row, bounds)
    env = attempts.read_env(state, numbers[-1]) or {}
    lives = processes.alive(env) if env else False
    if lives is False:
        return "failed", "killed: its process is gone without a word"
    if lives and processes.suspended(int(env["pid"])):
        return "silent", f"its process {env['pid']} is suspended"
    # By the clock of the process itself: those of two machines, and one that is set, cannot be compared.
    quiet = processes.quiet_seconds(attempts.read_pulse(state, numbers[-1])) or 0.0
    if quiet > patience:
        return "silent", f"nothing for {duration(quiet)}"
    return "training", _progress(row, bounds)


def _progress(row: Mapping[str, Any] | None, bounds: Mapping[str, Any]) -> str:
    start, end = int(bounds["tokens_from"]), int(bounds["tokens_to"])
    if start == end:
        return "a merge"
    reached = max(start, int(row["tokens"])) if row is not None else start
    left_out = ", spike left out" if row is not None and row.get("skipped") else ""
    return f"{(reached - start) / (end - start):.0%} of {bounds['stage']}{left_out}"


def _evaluated(folder: Folder, plan: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str]:
    """Whether a trained run has all its evaluations."""
    wanted, there = 0, 0
    keys = {(task["suite"], task["task"]): task["key"] for task in plan["tasks"]}
    of_point: dict[str, list[str]] = {}
    for item in plan["evals"]:
        if item["point"].startswith(run["name"] + "@"):
            of_point.setdefault(item["point"], []).append(keys[item["suite"], item["task"]])
    for point in run["points"]:
        asked = of_point.get(f"{run['name']}@{point['label']}")
        if asked is None:
            continue
        done = states.read_done(folder.state(point["segment"] or run["base"]))
        weights = None if done is None else done.weights
        wanted += len(asked)
        there += sum(weights is not None and _has(folder, weights, key) for key in asked)
    if there == wanted:
        return "done", ""
    return ("evaluating" if at_work(folder) else "unevaluated"), f"{there}/{wanted}"


def _has(folder: Folder, weights: str, key: str) -> bool:
    return evaluations.exists(folder, weights, key)


def tracking(folder: Folder) -> list[str]:
    """A line for each tracker that the folder is handed on to."""
    return [standing.line for standing in read_standings(folder)]


def text(runs: list[RunStatus], trackers: Sequence[str] = (), width: int = 80) -> str:
    """A line per run in `width` columns, then how many are how far, then a line a tracker."""
    rows = [["run", "state", "step", "tok/s", "loss", "ETA", "tries", "ckpt"]]
    for run in runs:
        rows.append(
            [
                run.name,
                f"{run.state} {run.detail}".strip(),
                "" if run.step is None else str(run.step),
                "" if run.tokens_per_second is None else tokens(run.tokens_per_second),
                "" if run.loss is None else f"{run.loss:.3f}",
                "" if run.eta is None else duration(run.eta),
                str(run.attempts),
                "" if run.checkpoint is None else tokens(run.checkpoint),
            ]
        )
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.state] = counts.get(run.state, 0) + 1
    summary = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    lines = [table(rows, right=[2, 3, 4, 5, 6, 7], width=width), f"{len(runs)} runs: {summary}"]
    return "\n".join([*lines, *(line for tracker in trackers for line in textwrap.wrap(tracker, width))])


def to_json(folder: Folder, runs: list[RunStatus], problem: str | None = None) -> dict[str, Any]:
    """problem: why Slurm could not be asked."""
    trackers = [asdict(standing) for standing in read_standings(folder)]
    found = {"folder": str(folder.root), "runs": [run.to_json() for run in runs], "trackers": trackers}
    return found | ({} if problem is None else {"slurm": problem})
