"""A results folder read into typed records: planned runs × points × metrics, with what is missing kept missing.

Everything comes from the folder (`plan.json`, `runs/`, `states/`, `evals/`) through `harness.store`; the YAML is never
read. A missing value is absent, never 0: whoever averages must say over what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from analysis.items import Items, read_items
from analysis.metrics import Metric, family_of, guess_direction, in_order, metric_name, suite_name
from analysis.outside import OUTSIDE, Outside, read_outside
from analysis.records import BASE, EMA, END, Arm, Compare, Point, Run, Status, Task, Value
from harness.plan.records import own_names
from harness.store import attempts, evaluations, plans, states
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.store.markers import Damaged, check_schema
from harness.store.runs import states_behind
from harness.study.errors import UserError, nearest
from harness.study.measures import is_averaged

__all__ = [
    "BASE", "EMA", "END", "Arm", "Compare", "Frame", "Point", "Run", "Status", "Task", "Value", "read_frame",
]  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """All that the report reads. `values[run name, point label, metric name]`."""

    folder: Folder
    plan: Mapping[str, Any]
    arms: tuple[Arm, ...]
    runs: tuple[Run, ...]
    tasks: tuple[Task, ...]
    metrics: tuple[Metric, ...]
    compare: Compare
    primary_declared: bool
    values: Mapping[tuple[str, str, str], Value]
    results: Mapping[str, Mapping[str, Any]]  # evaluation folder → its results.json
    damaged: tuple[str, ...]
    weights: Mapping[str, str]  # state → hash of its weights, for the states that are there
    outside: tuple[Outside, ...] = ()  # their values: `values[name, OUTSIDE, metric]`
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # results of outside models, as `results`
    _items: dict[tuple[str, str], Items | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def study(self) -> str:
        return str(self.plan["study"])

    @cached_property
    def compared(self) -> tuple[Arm, ...]:
        """The arms of the tables: all but those that check the study itself and those without replicates."""
        return tuple(arm for arm in self.arms if not arm.control and not arm.pooled)

    @cached_property
    def tested(self) -> tuple[Arm, ...]:
        """The compared arms that are trained. A merged one is a mean of runs that are there already: it is no further
        observation, and takes no part in fits and tests."""
        return tuple(arm for arm in self.compared if arm.merge is None)

    @cached_property
    def pooled(self) -> tuple[Arm, ...]:
        """Arms that are one model of all seeds."""
        return tuple(arm for arm in self.arms if arm.pooled)

    @cached_property
    def trained_runs(self) -> tuple[Run, ...]:
        """The compared runs that have a path of their own."""
        return tuple(run for run in self.compared_runs if not run.made_of)

    @cached_property
    def compared_runs(self) -> tuple[Run, ...]:
        names = {arm.name for arm in self.compared}
        return tuple(run for run in self.runs if run.arm in names)

    @cached_property
    def seeds(self) -> tuple[str, ...]:
        """The seed sets of the compared arms."""
        return tuple(dict.fromkeys(run.seed for run in self.compared_runs))

    @cached_property
    def evaluated_labels(self) -> frozenset[str]:
        """Labels of the points that the study has evaluated; the others of a run are only places on its path."""
        return frozenset(str(item["point"]).rsplit("@", 1)[-1] for item in self.plan["evals"])

    def result(self, evaluation: str) -> Mapping[str, Any]:
        """The results of an evaluation folder that a value rests on, of a run or of an outside model."""
        found = self.results.get(evaluation)
        return self.beside[evaluation] if found is None else found

    @cached_property
    def by_name(self) -> Mapping[str, Metric]:
        return {metric.name: metric for metric in self.metrics}

    @cached_property
    def segments(self) -> Mapping[str, Mapping[str, Any]]:
        return {segment["id"]: segment for segment in self.plan["segments"]}

    @property
    def primary(self) -> tuple[Metric, ...]:
        return tuple(self.by_name[name] for name in self.compare.primary)

    def arm(self, name: str) -> Arm:
        """The arm that carries `name`, its own or an alias. Raises UserError."""
        for arm in self.arms:
            if name == arm.name or name in arm.aliases:
                return arm
        names = [name for arm in self.arms for name in (arm.name, *arm.aliases)]
        raise UserError(f"{self.folder.root} has no arm `{name}`: {nearest(name, names)}")

    @cached_property
    def _by_arm(self) -> Mapping[str, Mapping[str, Run]]:
        found: dict[str, dict[str, Run]] = {arm.name: {} for arm in self.arms}
        for run in self.runs:
            found[run.arm][run.seed] = run
        return found

    def runs_of(self, arm: str) -> tuple[Run, ...]:
        return tuple(self._by_arm[arm].values())

    def run_of(self, arm: str, seed: str) -> Run | None:
        return self._by_arm[arm].get(seed)

    def count(self, arm: str) -> Counter[str]:
        """How many of the arm's runs have each status, `planned` for all of them."""
        counts: Counter[str] = Counter(run.status for run in self.runs_of(arm))
        counts["planned"] = len(self.runs_of(arm))
        return counts

    def at_end(self, arm: str, metric: str) -> dict[str, Value]:
        """The metric of each seed's final state, for the seeds that have it."""
        found = {run.seed: self.values.get((run.name, END, metric)) for run in self.runs_of(arm)}
        return {seed: value for seed, value in found.items() if value is not None}

    def items(self, run: str, point: str, metric: Metric) -> Items | None:
        """The metric's items at one point, None when the samples do not carry it.

        A measure whose items do not add up to the reported value is no mean of items, and is not treated as one.
        """
        value = self.values.get((run, point, metric.name))
        if value is None or metric.measure is None:
            return None
        evaluation = value.evaluations[0]
        if (evaluation, metric.measure) not in self._items:
            found = read_items(self.folder, evaluation, metric, value.value)
            self._items[evaluation, metric.measure] = found
        return self._items[evaluation, metric.measure]


def read_frame(root: Path, plan: Mapping[str, Any] | None = None) -> Frame:
    """Read a results folder, finished or half-way. Raises UserError when it is none.

    plan: what plan.json holds or is about to hold, where the caller knows it.
    """
    folder = Folder(root)
    plan = _read_plan(folder) if plan is None else plan
    arms, canonical = _arms(plan)
    tasks = _tasks(plan.get("tasks", []))
    wanted = {(str(e["point"]), e.get("suite"), str(e["task"])) for e in plan["evals"]}
    reader = _Reader(folder, tasks, wanted, partial(states_behind, plan))
    runs = tuple(reader.run(run, canonical) for run in plan["runs"] if canonical.get(run["arm"]) == run["arm"])
    outside, damage = read_outside(folder)
    reader.damaged |= {*damage}
    further = _further_tasks(tasks, outside)
    for model in outside:
        reader.outside(model, [*tasks, *further])
    declared = dict(plan.get("compare") or {})
    primary = tuple(str(name) for name in declared.get("primary") or ())
    margins = {str(name): float(margin) for name, margin in (declared.get("not_worse") or {}).items()}
    metrics = _metrics(reader, [task for task in tasks if task.measured], (*primary, *margins))
    if not primary:
        primary = _default_primary(metrics)
    metrics += _metrics(reader, further, ())
    places = [(run.name, point.label) for run in runs for point in run.points]
    places += [(model.name, OUTSIDE) for model in outside]
    compare = Compare(
        baseline=canonical.get(declared.get("baseline") or "default", "default"),
        control=canonical.get(declared["control"]) if declared.get("control") else None,
        equal=str(declared.get("equal") or "tokens"),
        primary=primary,
        allow=dict(declared.get("allow") or {}),
        not_worse=margins,
        report_also=declared.get("report_also"),
    )
    return Frame(
        folder=folder,
        plan=plan,
        arms=arms,
        runs=runs,
        tasks=tasks,
        metrics=tuple(in_order(metrics, primary)),
        compare=compare,
        primary_declared=bool(declared.get("primary")),
        values={**reader.values, **_averages(places, metrics, reader.values)},
        results=reader.results,
        damaged=tuple(sorted(reader.damaged)),
        weights=reader.weights,
        outside=outside,
        beside=reader.beside,
    )


def _tasks(entries: Sequence[Mapping[str, Any]]) -> tuple[Task, ...]:
    """Tasks as plan.json writes them."""
    return tuple(
        Task(t.get("suite"), str(t["task"]), str(t["kind"]), str(t["key"]), t.get("headline")) for t in entries
    )


def _further_tasks(tasks: Sequence[Task], outside: Sequence[Outside]) -> tuple[Task, ...]:
    """Tasks of suites that only outside models were evaluated on, each once."""
    suites = {task.suite for task in tasks}
    found = dict.fromkeys(task for model in outside for task in _tasks(model.tasks))
    return tuple(task for task in found if task.suite not in suites)


def _read_plan(folder: Folder) -> Mapping[str, Any]:
    try:
        plan = read_json(folder.plan_json)
    except FileNotFoundError:
        raise UserError(
            f"{folder.root} has no plan.json, so it is not a results folder; `ablate run STUDY.yaml -o DIR` makes one."
        ) from None
    except ValueError as error:
        raise UserError(f"{folder.plan_json} is not JSON ({error}); `ablate run` writes it anew.") from None
    if not isinstance(plan, dict):
        raise UserError(f"{folder.plan_json} holds no JSON object; `ablate run` writes it anew.")
    check_schema(folder.plan_json, int(plan.get("schema", plans.SCHEMA)), plans.SCHEMA)
    return plan


def _arms(plan: Mapping[str, Any]) -> tuple[tuple[Arm, ...], dict[str, str]]:
    """The distinct arms with their aliases, and every name → the arm that carries it."""
    canonical = own_names((arm["name"], arm.get("same_as")) for arm in plan["arms"])
    arms = tuple(
        Arm(
            name=arm["name"],
            aliases=tuple(name for name, own in canonical.items() if own == arm["name"] and name != own),
            changes=dict(arm.get("changes") or {}),
            control=bool(arm.get("control")),
            merge=arm.get("merge"),
        )
        for arm in plan["arms"]
        if canonical[arm["name"]] == arm["name"]
    )
    return arms, canonical


class _Reader:
    """Reads each state and each evaluation once; runs share both."""

    def __init__(
        self,
        folder: Folder,
        tasks: Sequence[Task],
        wanted: Collection[tuple[str, str | None, str]],
        behind: Callable[[Mapping[str, Any]], Sequence[str]],
    ) -> None:
        """wanted: (`run@label`, suite, task) of every evaluation that the plan asks for. behind: the states of the runs
        that a merged run is made of."""
        self.folder = folder
        self.tasks = tasks
        self.wanted = wanted
        self.behind = behind
        self.values: dict[tuple[str, str, str], Value] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.beside: dict[str, dict[str, Any]] = {}  # of outside models
        self.damaged: set[str] = set()
        self.reported: dict[tuple[str, str], bool] = {}  # (task key, measure) → higher is better
        self._done: dict[str, states.Done | None] = {}

    def run(self, record: Mapping[str, Any], canonical: Mapping[str, str]) -> Run:
        name = str(record["name"])
        points = tuple(
            Point(str(point["label"]), str(point["state"]), int(point["tokens"])) for point in record["points"]
        )
        evaluated = {point.label: self._evaluate(name, point) for point in points}
        path = tuple(record["path"])
        made_of = tuple(record.get("made_of") or ())
        status, detail = self._status(self._before(record), evaluated[END])
        return Run(name, canonical[record["arm"]], str(record["seed_set"]), path, points, status, detail, made_of)

    def _before(self, record: Mapping[str, Any]) -> list[str]:
        """The states that say how a run stands: its path; of a merged run that is not there, those of its parts too."""
        path = [str(state) for state in record["path"]]
        if not record.get("made_of"):
            return [str(record["base"]), *path]
        behind = [state for state in self.behind(record) if (done := self.done(state)) and done.outcome == "diverged"]
        return path if self.done(path[-1]) is not None else [*behind, *path]

    @property
    def weights(self) -> dict[str, str]:
        return {state: done.weights for state, done in self._done.items() if done is not None and done.weights}

    def done(self, state: str) -> states.Done | None:
        if state not in self._done:
            try:
                self._done[state] = states.read_done(self.folder.state(state))
            except Damaged as reason:
                self.damaged.add(str(reason))
                self._done[state] = None
        return self._done[state]

    def _evaluate(self, run: str, point: Point) -> bool:
        """Take in the evaluations of one point; whether none of the study's tasks is missing."""
        done = self.done(point.state)
        if done is None or done.weights is None:
            return False
        whole = True
        for task in self.tasks:
            where = f"evals/{done.weights}/{task.key}"
            results = self._read_results(where, done.weights, task.key, self.results)
            if results is None:
                # Texts to read are wanted of a few runs only; without them no other run misses anything.
                whole = whole and not (task.measured or (f"{run}@{point.label}", task.suite, task.task) in self.wanted)
                continue
            self._take_in(run, point.label, task, where, results)
        return whole

    def outside(self, model: Outside, tasks: Sequence[Task]) -> None:
        """Take in what an outside model scored."""
        for task in tasks if model.weights else ():
            where = f"evals/{model.weights}/{task.key}"
            results = self._read_results(where, model.weights, task.key, self.beside)
            if results is not None:
                self._take_in(model.name, OUTSIDE, task, where, results, model.shows)

    def _take_in(
        self,
        owner: str,
        label: str,
        task: Task,
        where: str,
        results: Mapping[str, Any],
        shows: Callable[[str], bool] = lambda measure: True,
    ) -> None:
        for measure, record in (results.get("metrics") or {}).items() if task.measured else ():
            if record.get("value") is None or not shows(measure):
                continue
            name = metric_name(task.suite, task.task, measure, task.held_out)
            self.reported[task.key, measure] = bool(record.get("higher_is_better", guess_direction(name)))
            self.values[owner, label, name] = Value(
                float(record["value"]), record.get("stderr"), int(record.get("n") or 0), (where,)
            )

    def _read_results(self, where: str, weights: str, key: str, into: dict[str, Any]) -> dict[str, Any] | None:
        if where not in into:
            try:
                results = evaluations.read_results(self.folder, weights, key)
            except Damaged as reason:
                self.damaged.add(str(reason))
                return None
            if results is None:
                return None
            into[where] = results
        found: dict[str, Any] = into[where]
        return found

    def _status(self, states_on_path: Sequence[str], evaluated: bool) -> tuple[Status, str]:
        """How far a run came and why not further, from its states (the base first) and its final evaluation."""
        for state in states_on_path:
            done = self.done(state)
            if done is None:
                return self._unfinished(state)
            if done.outcome == "diverged":
                what = done.summary.get("what")
                return "diverged", f"at {done.tokens:,} tokens" + (f" ({what})" if what else "")
        return ("done", "") if evaluated else ("unevaluated", "evaluations are missing")

    def _unfinished(self, state: str) -> tuple[Status, str]:
        events = attempts.read_events(self.folder.state(state))
        last = events[-1] if events else {}
        if last.get("kind") == "failed":
            return "failed", str(last.get("error", "")).split("\n")[0]
        if last.get("kind") == "stopped":
            return "unfinished", f"stopped at {int(last['tokens']):,} tokens"
        return "unfinished", "in training" if events else "not started"


def _metrics(reader: _Reader, tasks: Sequence[Task], declared: Sequence[str]) -> list[Metric]:
    """Every measure that an evaluation reported, headlines that none has yet, the averages of suites, and what the
    study declares: a table half-way has all its columns."""
    found: dict[str, Metric] = {}
    for task in tasks:
        reported = {measure: higher for (key, measure), higher in reader.reported.items() if key == task.key}
        if task.headline:
            reported.setdefault(task.headline, guess_direction(task.headline))
        for measure, higher in reported.items():
            name = metric_name(task.suite, task.task, measure, task.held_out)
            found[name] = Metric(name, family_of(measure), higher, measure)
    for suite in dict.fromkeys(suite_name(task.suite) for task in tasks if not task.held_out):
        parts = _average_parts(suite, tasks)
        name = f"{suite}.average"
        if suite is not None and (len(parts) > 1 or (parts and name in declared)):
            found[name] = Metric(name, "average", True, parts=parts)
    for name in declared:
        family = "bpb" if name.startswith("bpb.") else family_of(name.rsplit(".", 1)[-1])
        found.setdefault(name, Metric(name, family, guess_direction(name)))
    return list(found.values())


def _average_parts(suite: str | None, tasks: Sequence[Task]) -> tuple[str, ...]:
    """The headline metrics of a suite that are shares of something right; losses and bits are never averaged in."""
    return tuple(
        metric_name(task.suite, task.task, task.headline, False)
        for task in tasks
        if suite_name(task.suite) == suite and task.headline and is_averaged(task.headline)
    )


def _default_primary(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Where the study declares none: bits per byte of each source and the suites' averages."""
    leading = [m.name for m in metrics if m.family in ("bpb", "average") and m.name.count(".") == 1]
    return tuple(sorted(leading, key=lambda name: not name.startswith("bpb.")))


def _averages(
    places: Sequence[tuple[str, str]], metrics: Sequence[Metric], values: Mapping[tuple[str, str, str], Value]
) -> dict[tuple[str, str, str], Value]:
    """Macro means at each (run or model, label), only where every task of the suite is there."""
    averages = {}
    for metric in metrics:
        for owner, label in places if metric.parts else ():
            parts = [values.get((owner, label, part)) for part in metric.parts]
            there = [part for part in parts if part is not None]
            if len(there) == len(parts):
                mean = sum(part.value for part in there) / len(there)
                folders = tuple(folder for part in there for folder in part.evaluations)
                averages[owner, label, metric.name] = Value(mean, None, sum(part.n for part in there), folders)
    return averages
