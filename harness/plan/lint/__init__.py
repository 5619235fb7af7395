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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from harness.plan.lint.codes import CODES, OF_RESULTS, OF_TREATMENTS, Lint, check_allowed
from harness.plan.lint.context import Lengths, context_unused
from harness.plan.lint.schedules import Path, cold_without_warmup, rewarms_annealed_base, schedule_open
from harness.plan.lint.treatments import Facts, Made, never_drawn, source_tokens, unequal_flops, unequal_merge

if TYPE_CHECKING:
    from harness.study import SeedSet, Study
    from harness.study.schema import CompareSpec

__all__ = ["CODES", "OF_RESULTS", "OF_TREATMENTS", "Lengths", "Lint", "Made", "Path", "lint", "source_tokens"]

NONE: Mapping[str, Made] = MappingProxyType({})
NO_CONTROL = (
    "no `compare.control`: an anneal on the plain pre-training mixture alone moves averages by points "
    "(+4.4 in OLMo 2, 2501.00656), so without an arm that spends the same budget on it, "
    "a gain over the base says little about the data"
)


def lint(
    study: Study,
    own: Mapping[str, str],
    paths: Mapping[str, Path],
    flops: Mapping[str, int] | None = None,
    lengths: Lengths | None = None,
    of_results: Sequence[Lint] = (),
    merged: Mapping[str, Made] = NONE,
) -> list[Lint]:
    """Findings against the study's baseline, allowed ones left out.

    own: name of each arm → the one that is trained in its place. paths: the schedule of each of these, by name. flops:
    of the path of each of them; None while the model is not known. lengths: of the sources' documents, as far as they
    are known. of_results: what `results` has found. merged: what each arm is made of that is made of others' weights.
    Raises Mistake for an `allow` that names no code.
    """
    compare = study.spec.compare
    check_allowed(compare.allow)
    baseline = study.arm(own[compare.baseline])
    facts = Facts(baseline)
    found: list[Lint] = []
    for arm in study.arms:
        if arm.name not in paths:
            continue
        if arm is not baseline:
            found += facts.against_baseline(arm, compare.equal)
            if compare.equal == "flops" and flops is not None and arm.name in flops:
                found += unequal_flops(arm.name, flops[arm.name], baseline.name, flops.get(baseline.name))
        found += never_drawn(arm)
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
    found += no_control(compare, own)
    found += crossed_seeds(study.seed_sets) if len(study.arms) > 1 else ()
    found += of_results
    # A control that is a number is no arm, and can be named as well.
    allowed = {(own.get(arm, arm), code) for arm, codes in compare.allow.items() for code in codes}
    named = [(item.arm or compare.baseline, item) for item in found]
    return [item for arm, item in named if (own.get(arm, arm), item.code) not in allowed]


def no_control(compare: CompareSpec, own: Mapping[str, str]) -> Iterator[Lint]:
    """No control, or one that is the baseline under another name, so that nothing is compared with it."""
    if compare.control is None:
        yield Lint("warning", "no-control", "", NO_CONTROL)
    elif own[compare.control] == own[compare.baseline]:
        message = (
            f"`compare.control: {compare.control}` and the baseline `{compare.baseline}` are one arm under two names"
        )
        expected = "expected an arm that differs, or none where the baseline itself is the control"
        yield Lint("error", "no-control", "", f"{message}, so that it adds no comparison; {expected}")


def crossed_seeds(replicates: Sequence[SeedSet]) -> Iterator[Lint]:
    """Replicates of which some share an init seed and some a data seed: they are no independent observations.

    An arm reacts to a seed in a way of its own, and shows it in every run with that seed. The residual takes each such
    run for a new one. With 2 × 3 seeds, seven equal arms and one metric, some arm is marked in 18 % of studies where
    the reactions to init and to data have a quarter of the other noise's variance each, in 34 to 65 % where they are
    nearly all of it, and not in the 5 % that are promised.
    """
    init, data = {one.init for one in replicates}, {one.data for one in replicates}
    if min(len(init), len(data)) < 2 or len(replicates) <= max(len(init), len(data)):
        return
    yield Lint(
        "warning",
        "crossed-seeds",
        "",
        f"{len(replicates)} replicates share {len(init)} init and {len(data)} data seeds and are counted as "
        "independent: where an arm reacts to one of its seeds, intervals are too short; expected `pair: zip`, with an "
        "init and a data seed of its own for each replicate",
    )
