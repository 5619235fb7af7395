"""Findings about what has run: arms against the baseline, in what their states and results were computed with.

A run is held against the baseline's run of the same seeds, for it is with that one that it is paired; where there is
none (an A/A arm), against all of the baseline's. Values are compared as sets over everything that lies on a run's path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from harness.plan.fingerprint import state_at
from harness.plan.lint.codes import Lint
from harness.plan.observed import EvaluationSeen, Observed
from harness.plan.records import names_of

if TYPE_CHECKING:
    from harness.plan.plan import Plan
    from harness.plan.records import PlanRun

Values = dict[str, set[str]]  # field → the values that occur
MOST_FIELDS = 4


def lint_results(plan: Plan, observed: Observed, share: bool = True) -> list[Lint]:
    """All findings about what is there. Reads nothing but `plan` and `observed`."""
    if not observed.states:
        return []
    found = [*_other_tokenizer(plan, observed), *_different_results(plan, observed, share)]
    current = {task.key: f"{task.suite}: {task.task}" if task.suite else task.task for task in plan.tasks}
    of_weights: dict[str, list[EvaluationSeen]] = {}
    for result in observed.results:
        of_weights.setdefault(result.weights, []).append(result)
    merges = {segment.id for segment in plan.segments.values() if segment.kind == "merge"}
    paths = {run.name: _of_path(plan.states_of(run), merges, observed) for run in plan.runs}
    scores = {run.name: _of_results(run, observed, of_weights, current) for run in plan.runs}
    for arm, own, reference in _pairs(plan):
        found += _against(arm, own, reference, paths, scores)
    found += _earlier_results(plan, observed, of_weights, current)
    return list(dict.fromkeys(found))


def _pairs(plan: Plan) -> Iterator[tuple[str, list[str], list[str]]]:
    """(arm, its runs, the baseline's runs that they are held against) for every pair of seeds, or all at once."""
    baseline = names_of(plan.arms)[plan.study.spec.compare.baseline]
    runs: dict[str, dict[str, str]] = {}
    for run in plan.runs:
        runs.setdefault(run.arm, {})[run.seeds.name] = run.name
    reference = runs[baseline]
    for arm, own in runs.items():
        if arm == baseline:
            continue
        common = [seeds for seeds in own if seeds in reference]
        if not common:
            yield arm, list(own.values()), list(reference.values())
        for seeds in common:
            yield arm, [own[seeds]], [reference[seeds]]


def _of_path(path: list[str], merges: Collection[str], observed: Observed) -> Values:
    """Numerics, code and tokenizer of the states of a run, flat, as far as they are done.

    merges: states that no model was run for; their numerics say nothing beside those of training.
    """
    values: Values = {}
    for state in path:
        seen = observed.states.get(state)
        if seen is None or seen.outcome not in ("trained", "diverged"):
            continue
        for attempt in seen.attempts:
            for name, value in attempt.numerics.items() if state not in merges else ():
                values.setdefault(f"numerics.{name}", set()).add(value)
            if attempt.code is not None:
                values.setdefault("code", set()).add(attempt.code[:12])
        if seen.tokenizer is not None:
            values.setdefault("tokenizer", set()).add(seen.tokenizer[:12])
    return values


def _of_results(
    run: PlanRun, observed: Observed, of_weights: Mapping[str, list[EvaluationSeen]], current: Mapping[str, str]
) -> Values:
    """What a run's final state was evaluated with, by task and field, for the study's tasks as they are now."""
    values: Values = {}
    for result in of_weights.get(_weights(run, observed) or "", ()):
        if result.key in current:
            for name, value in result.facts.items():
                values.setdefault(f"{current[result.key]}: {name}", set()).add(value)
    return values


def _weights(run: PlanRun, observed: Observed) -> str | None:
    seen = observed.states.get(run.path[-1])
    return seen.weights if seen is not None and seen.outcome == "trained" else None


def _against(
    arm: str, own: list[str], reference: list[str], paths: Mapping[str, Values], scores: Mapping[str, Values]
) -> Iterator[Lint]:
    mine, theirs = _union(own, paths), _union(reference, paths)
    differing = _differing(mine, theirs)
    code = differing.pop("code", None)
    tokenizer = differing.pop("tokenizer", None)
    if tokenizer is not None:
        said = f"its weights come with another tokenizer than the baseline's ({tokenizer})"
        yield Lint("error", "different-tokenizer", arm, said)
    if code is not None:
        yield Lint("warning", "different-code", arm, f"was trained by other code than the baseline ({code})")
    results = _differing(_union(own, scores), _union(reference, scores))
    numerics = {name.removeprefix("numerics."): text for name, text in differing.items()}
    numerics |= {name: text for name, text in results.items() if ": numerics." in name}
    if numerics:
        yield Lint("warning", "different-numerics", arm, f"was not computed as the baseline was: {_list(numerics)}")
    settings = {name: text for name, text in results.items() if ": numerics." not in name}
    if settings:
        said = f"was not evaluated as the baseline was: {_list(settings)}"
        yield Lint("warning", "different-evaluation", arm, said)


def _union(runs: list[str], values: Mapping[str, Values]) -> Values:
    union: Values = {}
    for run in runs:
        for name, found in values[run].items():
            union.setdefault(name, set()).update(found)
    return union


def _differing(mine: Values, theirs: Values) -> dict[str, str]:
    """Fields that both have and that differ, as `a, baseline b`."""
    return {
        name: f"{', '.join(sorted(mine[name]))}; baseline {', '.join(sorted(theirs[name]))}"
        for name in sorted(mine.keys() & theirs.keys())
        if mine[name] != theirs[name]
    }


def _list(fields: Mapping[str, str]) -> str:
    shown = [f"{name} {text}" for name, text in list(fields.items())[:MOST_FIELDS]]
    rest = len(fields) - len(shown)
    return " / ".join(shown) + (f" and {rest} more" if rest else "")


def _earlier_results(
    plan: Plan, observed: Observed, of_weights: Mapping[str, list[EvaluationSeen]], current: Mapping[str, str]
) -> Iterator[Lint]:
    """Runs whose only result of a task is of other settings, while others have one of the study's present settings.

    Results are named by their settings, so no table mixes the two: what is missing is shown as missing. But whoever
    looks at half an evaluation must know that the rest is not lost.
    """
    by_task = {task.task: task.key for task in plan.tasks if not task.for_reading}
    present: dict[str, EvaluationSeen] = {}
    for result in observed.results:
        if result.key in current:
            present.setdefault(result.key, result)
    for run in plan.runs:
        there = of_weights.get(_weights(run, observed) or "", ())
        keys = {result.key for result in there}
        for result in there:
            now = by_task.get(result.task)
            if result.key in current or now is None or now in keys or now not in present:
                continue
            changed = _changed(result.facts, present[now].facts)
            said = f"its result of {current[now]} was computed with other settings ({changed}), and none with these"
            yield Lint("warning", "different-evaluation", run.arm, said)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = [f"{name} {before.get(name, 'none')} → {now.get(name, 'none')}" for name in names[:MOST_FIELDS]]
    return ", ".join(shown) or "its data"


def _other_tokenizer(plan: Plan, observed: Observed) -> Iterator[Lint]:
    """States that an earlier tokenizer made, while the runs that are to take their place are not all there."""
    now = plan.identities.tokenizer
    if now is None or all(_weights(run, observed) for run in plan.runs):
        return
    others: dict[str, int] = {}
    known = {*plan.segments, *plan.bases}
    for name, seen in observed.states.items():
        of = seen.of_tokenizer
        if name not in known and seen.attempts and seen.outcome == "trained" and of is not None and of != now:
            others[of] = others.get(of, 0) + 1
    for of, count in sorted(others.items()):
        said = (
            f"{count} trained states were made with the tokenizer {of[:12]}, which is now {now[:12]}: they are not "
            "compared, and every run is trained again; put the tokenizer back if that is not meant"
        )
        yield Lint("warning", "different-tokenizer", "", said)


def _different_results(plan: Plan, observed: Observed, share: bool) -> Iterator[Lint]:
    """Updates that two attempts computed differently, and equal states of a folder without sharing that differ."""
    for segment in plan.segments.values():
        seen = observed.states.get(segment.id)
        if seen is not None and seen.disagreements:
            count = len(seen.disagreements)
            said = (
                f"{count} update{'s' * (count != 1)} of `{segment.stage}` were computed twice and came out different, "
                f"the first at token {seen.disagreements[0]:,}: equal declarations do not give equal results here"
            )
            yield Lint("warning", "same-declaration-different-results", plan.runs[segment.run].arm, said)
    if not share:
        yield from _unshared(plan, observed)


def _unshared(plan: Plan, observed: Observed) -> Iterator[Lint]:
    first: dict[str, tuple[str, str]] = {}  # the state's fingerprint → (run, weights) that came first
    for segment in plan.segments.values():
        seen, run = observed.states.get(segment.id), plan.runs[segment.run]
        if seen is None or seen.weights is None or segment.kind != "train":
            continue
        name = state_at(run.base, run.pieces, run.data_seeds, segment.tokens_to)
        other, weights = first.setdefault(name, (run.name, seen.weights))
        if weights != seen.weights:
            said = (
                f"{run.name} and {other} are declared equal up to token {segment.tokens_to:,}, and their weights are "
                f"not ({seen.weights[:12]}, {weights[:12]})"
            )
            yield Lint("warning", "same-declaration-different-results", run.arm, said)
