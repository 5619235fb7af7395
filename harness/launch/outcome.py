"""How a study's runs stand when `ablate run` ends: done, diverged, failed and why, or stopped."""

from __future__ import annotations

import shlex
import signal
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.launch.work import Failure, Result
from harness.plan.observed import Observed
from harness.plan.plan import Plan
from harness.plan.records import PlanRun
from harness.plan.render import table

End = Literal["done", "diverged", "failed", "stopped", "untrained", "held", "queued"]
UNMARKED = Failure("error", "its work ended without an error, and its marker is not there")


@dataclass(frozen=True)
class RunEnd:
    """A run and how it stands. failure: of the first piece of its path that failed."""

    run: str
    end: End
    failure: Failure | None = None


@dataclass(frozen=True)
class Ended:
    """The end of an `ablate run`. signal: the stop signal that ended it early, None when it went to its end.

    A held run waits for a control that has not let it go.
    """

    runs: Sequence[RunEnd]
    signal: int | None = None

    @property
    def failed(self) -> list[RunEnd]:
        return [run for run in self.runs if run.end == "failed"]

    @property
    def held(self) -> list[RunEnd]:
        return [run for run in self.runs if run.end == "held"]

    @property
    def exit_code(self) -> int:
        """0 done, 1 some runs failed or are held, 128 + signal when stopped."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.held else 0


def ended(
    plan: Plan,
    observed: Observed,
    results: Mapping[str, Result],
    stopped_by: int | None,
    trained: bool = True,
    rest: End | None = None,
) -> Ended:
    """How every run stands. plan and observed: of the folder after the work; results: by item of work.

    trained: whether training was asked for; where it was not, a run without its states is `untrained`, not failed.
    rest: what a run is whose work is neither done nor failed, where that is none of these (`queued`).
    """
    rest = rest or ("stopped" if stopped_by is not None else "failed" if trained else "untrained")
    return Ended([_run_end(plan, observed, results, run, rest) for run in plan.runs], stopped_by)


def _run_end(plan: Plan, observed: Observed, results: Mapping[str, Result], run: PlanRun, rest: End) -> RunEnd:
    there = observed.states.get(run.path[-1])
    made = run.made_of and there is not None and there.outcome == "trained"
    before = run.path if made else plan.states_of(run)  # what it was made of may be gone since
    for state in (run.base, *before):
        seen = observed.states.get(state)
        if seen is not None and seen.outcome == "diverged":
            return RunEnd(run.name, "diverged")
        for kind in ("base", "train", "merge"):
            result = results.get(f"{kind}:{state}")
            if result is not None and result.outcome in ("failed", "blocked"):
                return RunEnd(run.name, "failed", result.failure)
    merges = [point.state for point in run.points if plan.kind_of(point.state) == "merge"]
    for state in merges:
        result = results.get(f"merge:{state}")
        if result is not None and result.outcome in ("failed", "blocked"):
            return RunEnd(run.name, "failed", result.failure)
    missing = [state for state in (*run.path, *merges) if plan.segments[state].needed]
    unscored = [item.state for item in plan.evals if item.run == run.name and not item.done]
    for state in unscored:
        result = results.get(f"evaluate:{state}")
        if result is not None and result.outcome in ("failed", "blocked"):
            return RunEnd(run.name, "failed", result.failure)
    if not missing and not unscored:
        return RunEnd(run.name, "done")
    if run.arm in plan.held and rest in ("failed", "queued"):
        return RunEnd(run.name, "held")
    return RunEnd(run.name, rest, UNMARKED if rest == "failed" else None)


def failure_table(runs: Sequence[RunEnd], folder: str, again: str, width: int = 80) -> str:
    """Which runs failed, why, and what to type. Runs with one cause stand together, in `width` columns."""
    causes: dict[Failure, list[str]] = {}
    for run in runs:
        causes.setdefault(run.failure or UNMARKED, []).append(run.run)
    rows = [["failed", "class"]]
    lines = []
    for failure, names in causes.items():
        rows += [[name, failure.kind] for name in names]
        lines += textwrap.wrap(f"{failure.kind}: {failure.error}", width, subsequent_indent="  ")
        lines.append(f"  the whole output: ablate logs {shlex.quote(folder)} {shlex.quote(names[0])}")
    return "\n".join([table(rows, width=width), *lines, f"to try again: {again}"])


def stopped_line(ended: Ended, again: str) -> str:
    """One line: what ended the run early and what to type to go on."""
    assert ended.signal is not None
    done = sum(run.end in ("done", "diverged") for run in ended.runs)
    name = signal.Signals(ended.signal).name
    return f"stopped by {name} with {done} of {len(ended.runs)} runs done; to go on: {again}"


def to_json(ended: Ended) -> list[dict[str, Any]]:
    """The runs as they stand, for `--json`."""
    return [
        {
            "name": run.run,
            "state": run.end,
            "failure": None if run.failure is None else {"class": run.failure.kind, "error": run.failure.error},
        }
        for run in ended.runs
    ]


def counts(ended: Ended) -> str:
    """How many runs ended how."""
    found: dict[str, int] = {}
    for run in ended.runs:
        found[run.end] = found.get(run.end, 0) + 1
    return f"{len(ended.runs)} runs: " + ", ".join(f"{number} {end}" for end, number in sorted(found.items()))
