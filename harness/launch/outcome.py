"""How a study's runs stand when `ablate run` ends: done, diverged, failed and why, or stopped."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.launch.work import Failure, Result
from harness.plan.observed import Observed
from harness.plan.plan import Plan, PlanRun
from harness.plan.render import table

End = Literal["done", "diverged", "failed", "stopped"]
UNMARKED = Failure("error", "its work ended without an error, and its marker is not there")


@dataclass(frozen=True)
class RunEnd:
    """A run and how it stands. failure: of the first piece of its path that failed."""

    run: str
    end: End
    failure: Failure | None = None


@dataclass(frozen=True)
class Ended:
    """The end of an `ablate run`. signal: the stop signal that ended it early, None when it went to its end."""

    runs: Sequence[RunEnd]
    signal: int | None = None

    @property
    def failed(self) -> list[RunEnd]:
        return [run for run in self.runs if run.end == "failed"]

    @property
    def exit_code(self) -> int:
        """0 done, 1 some runs failed, 128 + signal when stopped."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed else 0


def ended(plan: Plan, observed: Observed, results: Mapping[str, Result], stopped_by: int | None) -> Ended:
    """How every run stands. plan and observed: of the folder after the work; results: by item of work."""
    return Ended([_run_end(plan, observed, results, run, stopped_by is not None) for run in plan.runs], stopped_by)


def _run_end(plan: Plan, observed: Observed, results: Mapping[str, Result], run: PlanRun, stopped: bool) -> RunEnd:
    for state in (run.base, *run.path):
        seen = observed.states.get(state)
        if seen is not None and seen.outcome == "diverged":
            return RunEnd(run.name, "diverged")
        for kind in ("base", "train"):
            result = results.get(f"{kind}:{state}")
            if result is not None and result.outcome == "failed":
                return RunEnd(run.name, "failed", result.failure)
    missing = [state for state in run.path if plan.segments[state].needed]
    unscored = [item.state for item in plan.evals if item.run == run.name and not item.done]
    for state in unscored:
        result = results.get(f"evaluate:{state}")
        if result is not None and result.outcome == "failed":
            return RunEnd(run.name, "failed", result.failure)
    if not missing and not unscored:
        return RunEnd(run.name, "done")
    return RunEnd(run.name, "stopped") if stopped else RunEnd(run.name, "failed", UNMARKED)


def failure_table(runs: Sequence[RunEnd], folder: str, again: str, width: int = 80) -> str:
    """Which runs failed, why, and what to type. Runs with one cause stand together."""
    causes: dict[Failure, list[str]] = {}
    for run in runs:
        if run.failure is not None:
            causes.setdefault(run.failure, []).append(run.run)
    rows = [["failed", "class", "last error"]]
    for failure, names in causes.items():
        rows += [
            [name, failure.kind if place == 0 else "", failure.error if place == 0 else "the same"]
            for place, name in enumerate(names)
        ]
    first = next(iter(causes.values()))[0]
    return "\n".join(
        [table(rows, width=width), f"the whole output:  ablate logs {folder} {first}", f"to try them again: {again}"]
    )


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
