"""Rotary position embeddings of a stage: the parameters of a model's configuration, from what a study declares.

Pure arithmetic on the study's `context.rope` and on what the base's manifest says, so that a plan refuses what training
or evaluation could not do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.plan.science import context_science
from harness.study.errors import Mistake, UserError
from harness.study.treatment import Arm

# Types whose frequencies do not depend on `max_position_embeddings`, so that it may follow the trained context.
FREE_OF_LENGTH = {"default", "linear", "llama3", "yarn"}
DEFAULTS = {"yarn": {}, "linear": {}, "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}
NEW_THETA = {"ntk", "dynamic"}  # types that are plain rotary embedding with another theta, and exported as that


def check_ropes(
    arms: Iterable[Arm], base: Mapping[str, Any] | None, error: Callable[[Mistake, str], Exception]
) -> None:
    """Refuse a stage's context that the model of the manifest `base` cannot have; None: not known yet.

    error: what is raised for a mistake of the arm of that name.
    """
    if base is None or "rope" not in base:
        return
    checked = set()
    for arm in arms:
        for stage in arm.treatment.stages:
            if stage.context in checked:
                continue
            checked.add(stage.context)
            science, own = context_science(stage.context), base["max_positions"]
            try:
                parameters = resolve_rope(
                    science["rope"], base["rope"], science["length"], own, head_dim(base["config"])
                )
                positions(parameters, science["length"], own)
            except UserError as wrong:
                raise error(Mistake(("stages", stage.name, "context"), f"{wrong}"), arm.name) from None


def check_evaluated_length(length: int | None, base: Mapping[str, Any] | None) -> None:
    """Raise Mistake where `eval.max_length` is longer than the learned positions of the model of the manifest `base`:
    beyond them it has none, while a rotary embedding goes on. None: not known yet, or nothing is evaluated."""
    if length is None or base is None or base.get("rope", {}) is not None or base["max_positions"] is None:
        return
    if length > base["max_positions"]:
        message = f"{length} is longer than the {base['max_positions']} learned positions of the model"
        raise Mistake(("eval", "max_length"), f"{message}; expected at most {base['max_positions']}")


def head_dim(config: Mapping[str, Any]) -> int | None:
    """Dimensions of an attention head, from the fields of a configuration; None for a model that does not say."""
    own, hidden, heads = (config.get(name) for name in ("head_dim", "hidden_size", "num_attention_heads"))
    return int(own) if own else (int(hidden // heads) if hidden and heads else None)


def resolve_rope(
    rope: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    length: int = 0,
    own: int | None = None,
    head: int | None = None,
) -> dict[str, Any] | None:
    """The rope parameters of a stage: `rope` is the study's `context.rope`, `base` those of the base model.

    length: positions of a row of the stage; own: those that the base model declares; head: dimensions of one of its
    attention heads. `base` keeps the model's own.
    Every other type starts from plain rotary embedding with `theta` (else the base's), over the part of a head that
    the model rotates, whatever scaling the base has: `default` leaves it there; `linear` is position interpolation
    (Chen et al., 2306.15595), `ntk` and `dynamic` another theta (`_stretched_theta`), `yarn` Peng et al., 2309.00071,
    `llama3` the bands of Llama 3.1, each stretching `original` positions by `factor`. Raises UserError for a model
    without rotary embeddings or with a different one per layer type, and for a factor that nothing decides or that
    would shrink.
    """
    kind = rope["type"]
    if kind == "base":
        return dict(base) if base is not None else None
    if base is None:
        raise UserError("`context.rope` changes the rotary position embedding, but the model has none.")
    if any(isinstance(value, Mapping) for value in base.values()):
        raise UserError(
            "`context.rope` sets one rope, but the model has rope parameters per layer type; use `type: base`."
        )
    kept = {name: base[name] for name in ("partial_rotary_factor",) if name in base}
    plain = {"rope_type": kind, "rope_theta": float(rope.get("theta", base.get("rope_theta", 1e4))), **kept}
    if kind == "default":
        return plain
    original = rope.get("original") or base.get("original_max_position_embeddings") or own
    if original is None:
        raise UserError(f"`context.rope: {{type: {kind}}}` stretches the model's positions, and it declares none.")
    if kind in NEW_THETA:
        theta = _stretched_theta(plain, rope, length, original, head)
        return {**plain, "rope_type": "default", "rope_theta": theta}
    stretched = {**plain, **DEFAULTS[kind], "factor": _factor(rope["factor"], length, original)}
    if kind != "linear":
        stretched["original_max_position_embeddings"] = original
    own_parameters = set(rope) - {"type", "theta", "factor", "original"}
    return {**stretched, **{name: rope[name] for name in sorted(own_parameters)}}


def _stretched_theta(
    plain: Mapping[str, Any], rope: Mapping[str, Any], length: int, original: int, head: int | None
) -> float:
    """theta s^(d / (d - 2)), d being the rotated dimensions of a head: the fastest frequency stays, the slowest is
    divided by s (NTK-aware scaling: u/bloc97, 2023; Peng et al., 2309.00071, section 3.1).

    ntk: s is `factor`. dynamic: s = factor L / original - (factor - 1) for rows of L positions, as transformers'
    `dynamic` computes for a row of that length (u/emozilla, 2023; _compute_dynamic_ntk_parameters). There, the theta of
    a shorter row depends on the longest one that the module has seen since a short one: a score would depend on the
    order of the prompts and on the batch. Here it is that of the stage's length, for every row.
    """
    rotated = int(head * plain.get("partial_rotary_factor", 1.0)) if head else 0
    if rotated <= 2:
        kind = rope["type"]
        raise UserError(f"`context.rope: {{type: {kind}}}` needs heads that rotate more than 2 dimensions.")
    if rope["type"] == "ntk":
        scale = _factor(rope["factor"], length, original)
    elif length <= original:
        raise UserError(
            f"`context.rope: {{type: dynamic}}` stretches rows that are longer than the model's {original} positions, "
            f"and `context.length` is {length}. Use `rope: base` for this stage."
        )
    else:
        scale = rope["factor"] * length / original - (rope["factor"] - 1)
    return float(plain["rope_theta"] * scale ** (rotated / (rotated - 2)))


def _factor(declared: float | str, length: int, original: int) -> float:
    factor = length / original if declared == "auto" else float(declared)
    if factor <= 1:
        raise UserError(
            f"`context.rope.factor: auto` is context.length / the model's positions, {length} / {original}: nothing to "
            "stretch. Use `rope: base`, or a factor above 1."
        )
    return factor


def positions(parameters: Mapping[str, Any] | None, length: int, own: int | None) -> int | None:
    """The positions that a configuration declares for rows of `length`, with the rope `parameters`; own: the base's.

    They grow where the rope allows it, so that an evaluation of the exported folder may use the whole trained context.
    Raises UserError where it does not. None for a model that declares none.
    """
    if own is None or length <= own:
        return own
    kind = None if parameters is None else parameters.get("rope_type")
    if kind not in FREE_OF_LENGTH:
        what = "learned positions" if kind is None else f"`{kind}` rope"
        raise UserError(f"`context.length: {length}` is longer than the {own} positions of the model ({what}).")
    return length
