"""Controls of a study, resolved: A/A arms with seeds of their own, and numbers that an arm must come to.

    controls:
      - {name: aa, same_as: default, seeds: {data: [4, 5, 6]}}
      - {name: published, reproduce: {arm: default, metric: base.average, at: end, value: 0.431, tolerance: 0.5pp}}

All other arms are held until every control has passed (`launch.controls` gates, `analysis.controls` judges).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.study.checks import check_margin, check_metric, check_name, replicates
from harness.study.errors import Mistake, nearest
from harness.study.schema import ControlSpec, ReproduceSpec, SeedsSpec, StudySpec
from harness.study.treatment import Arm, SeedSet

END = "end"


@dataclass(frozen=True)
class Control:
    """One control. arm: the arm that it doubles (`same_as`) or measures (`reproduce`), as the user names it.

    seeds: the replicates of an A/A arm, empty otherwise. metric, at, value, tolerance: of a reproduction, in the
    metric's own unit; None otherwise.
    """

    name: str
    kind: Literal["same_as", "reproduce"]
    arm: str
    seeds: tuple[SeedSet, ...] = ()
    metric: str | None = None
    at: str | None = None
    value: float | None = None
    tolerance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The control as plan.json keeps it."""
        names = ("name", "kind", "arm", "metric", "at", "value", "tolerance")
        return {name: getattr(self, name) for name in names}


def resolve_controls(spec: StudySpec, arms: Sequence[str], seeds: Sequence[SeedSet]) -> tuple[Control, ...]:
    """The controls of a study, in the order written.

    arms: names of all arms; seeds: the study's own replicates. Raises Mistake.
    """
    taken = [*arms, *spec.merge]
    resolved = []
    for index, control in enumerate(spec.controls):
        path = ("controls", index)
        check_name("arm", control.name, (*path, "name"))
        if control.name in taken:
            raise Mistake((*path, "name"), f"`{control.name}` names an arm or a control already; expected another name")
        taken.append(control.name)
        if (control.same_as is None) == (control.reproduce is None):
            both = "holds `same_as` and `reproduce`" if control.reproduce else "does not say what must hold"
            raise Mistake(path, f"{both}; expected one of same_as, reproduce")
        if END not in spec.eval.labels or not _measures(spec):
            at_end = (
                "nothing is evaluated at the end of training; expected `eval` with suites or held_out, and `at: [end]`"
            )
            raise Mistake(path, f"cannot be judged: {at_end}")
        if control.reproduce is not None:
            resolved.append(_reproduction(control, control.reproduce, spec, arms, path))
        else:
            resolved.append(_same_as(control, spec, arms, seeds, path))
    return tuple(resolved)


def _measures(spec: StudySpec) -> bool:
    return bool(spec.eval.suites or spec.eval.tasks or spec.eval.held_out != "none")


def _same_as(
    control: ControlSpec, spec: StudySpec, arms: Sequence[str], seeds: Sequence[SeedSet], path: tuple[str | int, ...]
) -> Control:
    arm = control.same_as
    assert arm is not None
    if arm in spec.merge:
        said = f"`{arm}` is a merge, which has no seeds of its own; expected an arm that is trained"
        raise Mistake((*path, "same_as"), said)
    if arm not in arms:
        raise Mistake((*path, "same_as"), f"there is no arm `{arm}`; {nearest(arm, arms)}")
    if control.seeds is None:
        raise Mistake((*path, "seeds"), "is missing; expected seeds that the study does not use, such as {data: [4]}")
    for key in ("init", "data"):
        own, studys = getattr(control.seeds, key), getattr(spec.seeds, key)
        if bool(own) != bool(studys) and not (key == "data" and spec.seeds.init is None):
            # Runs whose seeds vary in one more respect than the others' scatter more: no doubling of the same thing.
            what = f"the study's `seeds` list {'' if studys else 'no '}{key} seeds"
            raise Mistake((*path, "seeds"), f"{what}; expected {f'{key} seeds here, too' if studys else 'none here'}")
    listed = control.seeds
    own_spec = SeedsSpec.model_validate(
        {"init": listed.init, "data": listed.data, "pair": listed.pair, "from": spec.seeds.from_}
    )
    own_seeds = replicates(own_spec, (*path, "seeds"))
    used = {(one.init, one.data) for one in seeds}
    for one in own_seeds:
        if (one.init, one.data) in used:
            message = f"the seeds {one.name} are the study's own, so the runs would be the same; expected others"
            raise Mistake((*path, "seeds"), message)
    return Control(control.name, "same_as", arm, own_seeds)


def _reproduction(
    control: ControlSpec, wanted: ReproduceSpec, spec: StudySpec, arms: Sequence[str], path: tuple[str | int, ...]
) -> Control:
    path = (*path, "reproduce")
    if control.seeds is not None:
        raise Mistake((*path[:-1], "seeds"), "belongs to `same_as`, not to `reproduce`; expected it there", at_key=True)
    if wanted.arm in spec.merge:
        said = f"`{wanted.arm}` is a merge, which waits for the controls itself; expected an arm that is trained"
        raise Mistake((*path, "arm"), said)
    if wanted.arm not in arms:
        raise Mistake((*path, "arm"), f"there is no arm `{wanted.arm}`; {nearest(wanted.arm, arms)}")
    if wanted.at not in spec.eval.labels:
        raise Mistake((*path, "at"), f"`{wanted.at}` is not evaluated; {nearest(wanted.at, spec.eval.labels)}")
    check_metric(wanted.metric, spec, (*path, "metric"))
    check_margin(wanted.metric, wanted.tolerance, (*path, "tolerance"))
    return Control(
        control.name,
        "reproduce",
        wanted.arm,
        metric=wanted.metric,
        at=wanted.at,
        value=wanted.value,
        tolerance=wanted.tolerance.value,
    )


def control_arms(controls: Sequence[Control], arms: Mapping[str, Arm]) -> tuple[Arm, ...]:
    """The A/A arms: the treatment of the arm that each doubles, and no changes of their own."""
    return tuple(
        Arm(control.name, {}, arms[control.arm].treatment) for control in controls if control.kind == "same_as"
    )


def needed_arms(controls: Sequence[Control]) -> tuple[str, ...]:
    """The arms whose runs the controls' verdicts rest on, in the order named; their own A/A arms among them."""
    names = itertools.chain.from_iterable(
        (control.arm, control.name) if control.kind == "same_as" else (control.arm,) for control in controls
    )
    return tuple(dict.fromkeys(names))
