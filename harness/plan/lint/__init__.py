"""What may not be compared, or only with care. Every check reads resolved states, never the YAML.

Levels: an error stops `ablate run` unless `compare.allow` names it for the arm; a warning is printed and stands in the
report. An error is what makes a comparison wrong whatever comes out, and what costs nothing to put right before the
run: a difference that nobody declared, unequal budgets, an open schedule, weights of two tokenizers. Everything else
is a warning: it may be the very question of the study (confounded, rewarms-annealed-base), or is known only when the
work has been paid for (numerics, code, settings of an evaluation), where a refusal would keep half a study from being
finished. Codes are the names that `allow` takes.

Two walls: `treatments`, `schedules` and `context` read what is declared; `results` reads what was observed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.plan.lint.codes import CODES, OF_RESULTS, OF_TREATMENTS, Lint, check_allowed
from harness.plan.lint.context import Lengths, context_unused
from harness.plan.lint.schedules import Path, cold_without_warmup, rewarms_annealed_base, schedule_open
from harness.plan.lint.treatments import Facts, Made, source_tokens, unequal_flops, unequal_merge

if TYPE_CHECKING:
    from harness.study import Study

__all__ = ["CODES", "OF_RESULTS", "OF_TREATMENTS", "Lengths", "Lint", "Made", "Path", "lint", "source_tokens"]

NONE: Mapping[str, Made] = MappingProxyType({})
NO_CONTROL = (
    "no `compare.control`: an anneal on the plain pre-training mixture alone moves averages by points "
    "(+4.4 in OLMo 2, 2501.00656), so without an arm that spends the same budget on it, "
    "a gain over the base says little about the data"
)


def lint(
    study: Study,
    paths: Mapping[str, Path],
    flops: Mapping[str, int] | None = None,
    lengths: Lengths | None = None,
    of_results: Sequence[Lint] = (),
    merged: Mapping[str, Made] = NONE,
) -> list[Lint]:
    """Findings against the study's baseline, allowed ones left out.

    paths: the schedule of each arm that is trained, by name. flops: of the path of each of them; None while the model
    is not known. lengths: of the sources' documents, as far as they are known. of_results: what `results` has found.
    merged: what each arm is made of that is made of others' weights.
    Raises Mistake for an `allow` that names no code.
    """
    compare = study.spec.compare
    check_allowed(compare.allow)
    baseline = study.arm(compare.baseline)
    facts = Facts(baseline, study.sources)
    found: list[Lint] = []
    for arm in study.arms:
        if arm.name not in paths and arm is not baseline:
            continue
        if arm is not baseline:
            found += facts.against_baseline(arm, compare.equal)
            if compare.equal == "flops" and flops is not None and arm.name in flops:
                found += unequal_flops(arm.name, flops[arm.name], baseline.name, flops.get(baseline.name))
        if arm.name in paths:
            found += schedule_open(arm, paths[arm.name])
            found += cold_without_warmup(arm, paths[arm.name])
            found += rewarms_annealed_base(arm, paths[arm.name])
        if lengths is not None:
            found += context_unused(arm, baseline, lengths)
    for name, made in merged.items():
        found += unequal_merge(name, made.tokens, baseline, compare.equal)
        found += [
            replace(item, arm=name, message=f"is made of `{part}`, which {item.message}")
            for part in made.ends
            for item in schedule_open(study.arm(part), paths[part])
        ]
        if compare.equal == "flops" and flops is not None:
            found += unequal_flops(name, flops[name], baseline.name, flops.get(baseline.name))
    if compare.control is None:
        found.append(Lint("warning", "no-control", "", NO_CONTROL))
    found += of_results
    return [item for item in found if item.code not in compare.allow.get(item.arm or compare.baseline, ())]
