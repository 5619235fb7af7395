"""Optimizers as declared: what each takes and its defaults; anything else is refused by name.

    adamw  betas 0.9 and 0.95, eps 1e-8 Loshchilov & Hutter, 1711.05101
    lion   betas 0.9 and 0.99           Chen et al., 2302.06675, algorithm 2; its rate is 3 to 10 times below AdamW's
    muon   momentum 0.95; betas and eps as adamw, which updates all that is no matrix of a layer
                                        Jordan et al. 2024, scaled as in Liu et al., 2502.16982, eq. 4: one rate serves
    sgd    momentum 0.9                 with decoupled weight decay, as the others

Each takes lr, weight_decay (0.1, decoupled, on matrices), clip (1), z_loss (0), label_smoothing (0), decay_embeddings
(true), ema (none), state (carried) and skip_spikes (none; a window of 128 and 6 sigma, as OLMo-core's
SkipStepOptimizer, optim/skip_step_optimizer.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.study.errors import Mistake
from harness.study.paths import Path
from harness.study.schema import description_of
from harness.study.treatment import Arm, Base, Optimizer, OptimizerName, SkipSpikes, Stage

DEFAULTS: Mapping[OptimizerName, Mapping[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8},
    "sgd": {"momentum": 0.9},
}


def read_optimizer(block: Mapping[str, Any], path: Path) -> Optimizer:
    """Optimizer of a stage with its defaults. Raises Mistake for a missing rate and for what it does not take."""
    if "lr" not in block:
        raise Mistake((*path, "lr"), f"is missing here and in `train`; expected {description_of((*path, 'lr'))}")
    name: OptimizerName = block.get("name", "adamw")
    own = DEFAULTS[name]
    for key in ("betas", "eps", "momentum"):
        if key in block and key not in own:
            others = " and ".join(other for other, taken in DEFAULTS.items() if key in taken)
            message = f"{name} takes no `{key}`; expected it with {others} alone (a stage inherits that of `train`)"
            raise Mistake((*path, key), message, at_key=True)
    values = {**own, **{key: block[key] for key in own if key in block}}
    betas, eps, momentum = (values.get(key) for key in ("betas", "eps", "momentum"))
    clip, ema = block.get("clip", 1.0), block.get("ema")
    return Optimizer(
        name=name,
        lr=float(block["lr"]),
        betas=None if betas is None else (float(betas[0]), float(betas[1])),
        eps=None if eps is None else float(eps),
        weight_decay=float(block.get("weight_decay", 0.1)),
        clip=None if clip is None else float(clip),
        momentum=None if momentum is None else float(momentum),
        z_loss=float(block.get("z_loss", 0.0)),
        decay_embeddings=bool(block.get("decay_embeddings", True)),
        ema=None if ema is None else float(ema),
        label_smoothing=float(block.get("label_smoothing", 0.0)),
        state=block.get("state"),
        skip_spikes=_skip_spikes(block.get("skip_spikes")),
    )


def _skip_spikes(block: Mapping[str, Any] | None) -> SkipSpikes | None:
    if block is None:
        return None
    own = SkipSpikes()
    return SkipSpikes(int(block.get("window", own.window)), float(block.get("sigma", own.sigma)))


AVERAGE = "ema"  # the point of evaluation, and the optimizer's option that it needs


def check_states(base: Base, stages: Sequence[Stage], of_first: Mapping[str, Any]) -> None:
    """What a stage says of the optimizer's state must be what it can have. Raises Mistake.

    of_first: the first stage's own `optimizer` block, without what it inherits: `train` speaks of what follows it.
    """
    first = stages[0]
    path = ("stages", first.name, "optimizer", "state")
    if of_first.get("state") == "carried" and base.optimizer == "cold":
        message = f"there is no stage before `{first.name}`, and `base.optimizer` is cold, so that nothing is carried"
        raise Mistake(path, f"{message}; expected cold, or `base.optimizer: carried` for a base with a state")
    if first.optimizer.state == "cold" and base.optimizer == "carried":
        message = f"cold contradicts `base.optimizer: carried`, with whose state `{first.name}` begins"
        raise Mistake(path, f"{message}; expected `base.optimizer: cold`, or cold in later stages alone")
    for before, stage in itertools.pairwise(stages):
        one, other = before.optimizer.name, stage.optimizer.name
        if one != other and stage.optimizer.state == "carried":
            message = f"{other} cannot go on with the state of {one}, the optimizer of `{before.name}`"
            raise Mistake(
                ("stages", stage.name, "optimizer", "state"), f"{message}; expected cold (as it is without `state`)"
            )


def begins_cold(stages: Sequence[Stage]) -> list[bool]:
    """Whether each stage empties the optimizer's state; False for the first, which is `base.optimizer`'s affair."""
    return [False] * bool(stages) + [
        stage.optimizer.state == "cold" or before.optimizer.name != stage.optimizer.name
        for before, stage in itertools.pairwise(stages)
    ]


def check_stages(stages: Sequence[Stage]) -> None:
    """A moving average that begins must go on to the end of the path, where it is evaluated. Raises Mistake."""
    for before, stage in itertools.pairwise(stages):
        average, then = before.optimizer.ema, stage.optimizer.ema
        if average is not None and average != then:
            what = "has none" if then is None else f"has {then:g}, with which it begins anew"
            raise Mistake(
                ("stages", before.name, "optimizer", AVERAGE),
                f"{average:g} averages weights that are evaluated nowhere: `{stage.name}` {what}; expected one value "
                "from the stage where the average begins to the last",
            )


def switches(stages: Sequence[Stage]) -> Iterable[str]:
    """A sentence for each stage that another optimizer takes over."""
    for before, stage in itertools.pairwise(stages):
        one, other = before.optimizer.name, stage.optimizer.name
        if one != other:
            yield f"stages.{stage.name}: {other} after {one} starts cold, without the state that {one} has built up"


def check_average(points: Sequence[str], arms: Iterable[Arm]) -> None:
    """`ema` is evaluated where, and only where, every path keeps an average to its end. Raises Mistake."""
    for arm in arms:
        averaged = arm.treatment.stages[-1].optimizer.ema is not None
        if AVERAGE in points and not averaged:
            message = f"`ema` is the moving average of the weights, and arm `{arm.name}` keeps none to its end"
            path = ("eval", "at", points.index(AVERAGE))
            raise Mistake(path, f"{message}; expected `optimizer.ema`, such as 0.999, in its last stage")
        if averaged and AVERAGE not in points:
            message = f"arm `{arm.name}` averages its weights (`optimizer.ema`), and nothing evaluates the average"
            raise Mistake(("eval", "at"), f"{message}; expected `ema` among the points, such as [end, ema]")
