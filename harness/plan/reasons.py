"""Against what exists: which segments run, from which token, and why, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from harness.plan.fingerprint import state_at
from harness.plan.observed import Observed

if TYPE_CHECKING:
    from harness.plan.plan import Plan
    from harness.plan.tree import Segment


def settle(plan: Plan, observed: Observed) -> None:
    """Set state, reason, needed and start of every segment, and whether each base must be prepared.

    A segment is needed when its end is wanted (an evaluation is missing, or it ends a run that is not done) or a needed
    child starts from it, and no whole state is there. A state inside a trunk that nobody needs is not recomputed.
    """
    children: dict[str, list[Segment]] = {}
    for segment in plan.segments.values():
        for parent in segment.parents:
            children.setdefault(parent, []).append(segment)
    wanted = _wanted_states(plan, observed)
    passed = _passed_states(plan, observed, children)
    lost = lost_states(plan, [name for name, seen in observed.states.items() if seen.outcome == "diverged"])
    for segment in reversed(plan.segments.values()):  # children before parents
        seen = observed.states.get(segment.id)
        there = seen is not None and seen.outcome in ("trained", "diverged")
        if segment.id in lost:
            segment.needed = False
            segment.state, segment.reason = "reused", "its path diverged before it: a result, not retried"
            continue
        parent_of_work = any(child.needed and child.start_path is None for child in children.get(segment.id, ()))
        if there and seen is not None:
            segment.needed = False
            stale = seen.code is not None and observed.code is not None and seen.code != observed.code
            segment.state = "stale" if stale else "reused"
            segment.reason = (
                f"trained by other code ({seen.code[:8]}, now {observed.code[:8]})"
                if stale and seen.code and observed.code
                else ("diverged: a result, not retried" if seen.outcome == "diverged" else "done")
            )
            continue
        if not parent_of_work and segment.id not in wanted:
            segment.needed = False
            segment.state, segment.reason = "reused", "not needed: all that comes after it is there"
            continue
        _explain_work(segment, plan, observed, segment.id in passed)
    for base in plan.bases.values():
        seen = observed.states.get(base.id)
        there = seen is not None and seen.outcome == "trained"
        starts = any(child.needed and child.start_path is None for child in children.get(base.id, ()))
        base.needed = not there and (starts or base.id in wanted)
    if observed.previous is not None:
        _explain_rekeyed(plan, observed.previous)
    known = set(plan.segments) | set(plan.bases)
    plan.orphans = sorted(state for state in observed.states if state not in known)


def _wanted_states(plan: Plan, observed: Observed) -> set[str]:
    """States that must be there in their own right: each run's end, merges, and points with an evaluation to do."""
    wanted = {run.path[-1] for run in plan.runs}
    wanted.update(item.state for item in plan.evals if not item.done)
    wanted.update(segment.id for segment in plan.segments.values() if segment.kind == "merge")
    return wanted


def _passed_states(plan: Plan, observed: Observed, children: Mapping[str, list[Segment]]) -> set[str]:
    """States through which an earlier run has gone already: some state after them is there."""
    passed: set[str] = set()
    if not observed.states:
        return passed
    for segment in reversed(plan.segments.values()):
        for child in children.get(segment.id, ()):
            seen = observed.states.get(child.id)
            if child.id in passed or (seen is not None and seen.outcome in ("trained", "diverged")):
                passed.add(segment.id)
    return passed


def lost_states(plan: Plan, diverged: Collection[str]) -> set[str]:
    """The diverged states and every state after them, which nobody can reach."""
    lost = set(diverged)
    for segment in plan.segments.values():  # parents before children
        if any(parent in lost for parent in segment.parents):
            lost.add(segment.id)
    return lost


def _explain_work(segment: Segment, plan: Plan, observed: Observed, passed: bool) -> None:
    run = plan.runs[segment.run]
    segment.needed = True
    segment.start_tokens, segment.start_path = segment.tokens_from, None
    best = None
    for name, checkpoint in _checkpoints_in(observed, segment.tokens_from, segment.tokens_to):
        if best is not None and checkpoint.tokens <= best.tokens:
            continue
        inside = checkpoint.tokens < segment.tokens_to
        if name == (state_at(run.base, run.pieces, run.data_seeds, checkpoint.tokens) if inside else segment.id):
            best = checkpoint
    if best is not None:
        segment.start_tokens, segment.start_path = best.tokens, best.path
    seen = observed.states.get(segment.id)
    if seen is not None and seen.outcome == "damaged":
        segment.state, segment.reason = "recomputed", seen.reason
    elif seen is not None and seen.outcome == "stale":
        segment.state, segment.reason = "stale", seen.reason
    elif best is not None and best.tokens == segment.tokens_to:
        segment.state, segment.reason = "new", f"taken from the checkpoint that was kept at token {best.tokens:,}"
    elif passed:
        tokens = segment.tokens_to - segment.start_tokens
        segment.state = "recomputed"
        segment.reason = (
            f"no checkpoint was kept at token {segment.tokens_to:,}: "
            f"{tokens:,} tokens again from token {segment.start_tokens:,}"
        )
    elif best is not None:
        segment.state, segment.reason = "new", f"resumes at token {best.tokens:,}"
    else:
        segment.state, segment.reason = "new", "never trained" if segment.kind == "train" else "never made"


def _checkpoints_in(observed: Observed, after: int, to: int) -> list[tuple[str, Any]]:
    return [item for item in observed.checkpoints.items() if after < item[1].tokens <= to]


def _explain_rekeyed(plan: Plan, previous: Mapping[str, Any]) -> None:
    """Name what changed where a run of this name was planned before and its segment is new under another name."""
    science_then = previous.get("science")
    if not isinstance(science_then, dict):
        return
    science_now = science_summary(plan)
    merged = {run.path[0]: (run,) for run in plan.runs if run.made_of}
    for segment in plan.segments.values():
        if segment.state != "new" or not segment.needed or segment.start_path is not None:
            continue
        for run in (*merged.get(segment.id, ()), plan.runs[segment.run]):  # of a merge itself first, then of a part
            then, now = science_then.get(run.name), science_now.get(run.name)
            if not isinstance(then, dict) or now is None or segment.id in then.get("path", ()):
                continue
            before = {name: then["facts"].get(name) for name in now["facts"]} if run.made_of else then["facts"]
            changed = _first_differences(before, now["facts"])
            if changed:
                segment.state, segment.reason = "re-keyed", "because " + ", ".join(changed)
                break


def science_summary(plan: Plan) -> dict[str, Any]:
    """Per run what its fingerprints follow from, flat: kept in plan.json so that the next plan can say what changed."""
    summary: dict[str, Any] = {}
    for run in plan.runs:
        if run.made_of:  # what its parts are, they say
            facts: dict[str, Any] = {
                "made of": ", ".join(plan.runs[index].name for index in run.made_of),
                "coefficients": ", ".join((plan.segments[run.path[-1]].recipe or {})["coefficients"]),
            }
            summary[run.name] = {"path": run.path, "facts": facts}
            continue
        facts = dict(plan.bases[run.base].science)
        for piece, data_seed in zip(run.pieces, run.data_seeds, strict=True):
            for name, value in piece.science.items():
                if name == "lr":
                    facts[f"{piece.stage}.lr.{value['shape']}@{piece.start}"] = str(value)
                elif isinstance(value, dict):
                    facts.update({f"{piece.stage}.{name}.{key}": item for key, item in value.items()})
                else:
                    facts[f"{piece.stage}.{name}"] = value
            facts[f"{piece.stage}.data_seed"] = data_seed
            facts[f"{piece.stage}.end"] = piece.end
        summary[run.name] = {"path": run.path, "facts": facts}
    return summary


def _first_differences(then: Mapping[str, Any], now: Mapping[str, Any], at_most: int = 3) -> list[str]:
    changed = []
    for name in sorted(set(then) | set(now)):
        if then.get(name) != now.get(name):
            changed.append(f"{name} {_short(then.get(name))}→{_short(now.get(name))}")
    rest = len(changed) - at_most
    return changed[:at_most] + ([f"and {rest} more"] if rest > 0 else [])


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else text[:8] + "…"
