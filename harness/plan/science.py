"""The science of a path: what names the work, piece by piece.

A path is cut into pieces, intervals of tokens in which one description holds. Each piece's science is a JSON object;
what a training job needs to do the work is in it and in the base, and nothing else names the work. Where training
is cut into jobs, where checkpoints lie, machines, workers and logging never appear here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plan.canonical import digest
from harness.plan.schedule import schedule, stage_schedule
from harness.study.treatment import TRUNK_DATA_SEED, Base, Context, Stage, Treatment

# A science equal to these says nothing: only the difference is hashed, so an option added later with a neutral default
# re-keys nothing. A changed default needs a new version, which re-keys everything, as it should.
DEFAULTS_VERSION = 1
DEFAULTS: Mapping[str, Any] = {
    "context": {"documents": "masked", "packing": "concat", "rope": {"type": "base"}},
    # z_loss and whatever else is off by default is written only where it says something: see `_optimizer`.
    "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
    "precision": "fp32",
}


NOT_WANTED = ""


@dataclass(frozen=True)
class Identities:
    """What the base and the sources are, from their manifests; None where nothing was resolved yet.

    An unresolved part is named by its declaration instead, so that a plan can be drawn; it is re-keyed when resolved.
    weights: of the base. carried: of the base with the optimizer's state that it was left with; NOT_WANTED where no arm
    carries it.
    """

    weights: str | None
    tokenizer: str | None
    sources: Mapping[str, str | None]
    declared_sources: Mapping[str, Any]
    carried: str | None = NOT_WANTED

    @property
    def unresolved(self) -> list[str]:
        """Names of what has no manifest yet: `base`, `base.optimizer`, `tokenizer`, `sources.<name>`."""
        names = [name for name in ("weights", "tokenizer") if getattr(self, name) is None]
        if self.weights is not None and self.carried is None:
            names.append("base.optimizer")
        return ["base" if name == "weights" else name for name in names] + [
            f"sources.{name}" for name, identity in self.sources.items() if identity is None
        ]

    def source(self, name: str) -> str:
        identity = self.sources.get(name)
        return identity or "unresolved-" + digest(self.declared_sources.get(name))


@dataclass(slots=True)
class Piece:
    """One interval [start, end) of a path. Seeds are kept beside it: the replicates of an arm share its pieces.

    key: digest of the science's difference from the defaults; two pieces with one key and one data seed are one work.
    """

    start: int
    end: int
    stage: str
    science: dict[str, Any]
    key: str

    def as_json(self, data_seed: int) -> dict[str, Any]:
        """The piece as a job reads it."""
        return {
            "start": self.start,
            "end": self.end,
            "stage": self.stage,
            "science": {**self.science, "data_seed": data_seed},
        }


# A key is the digest of the digests of these parts; each is hashed once for all arms that share it.
PARTS = (
    ("lr",),
    ("mixture", "sources"),
    ("context",),
    ("optimizer",),
    ("precision",),
    ("batch_tokens",),
    ("blend_from",),
    ("optimizer_from",),
)


def piece_key(science: Mapping[str, Any]) -> str:
    """The key of a piece whose science (without its data seed) is given."""
    parts = ({name: science[name] for name in names if name in science} for names in PARTS)
    return _key(part_key(part) for part in parts if part)


def part_key(part: Mapping[str, Any]) -> str:
    return digest(difference(part, DEFAULTS))


def _key(part_keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(part_keys).encode()).hexdigest()


def read_pieces(pieces: Sequence[Mapping[str, Any]]) -> tuple[list[Piece], list[int]]:
    """The pieces of a `segment.json`, and the data seed of each."""
    read, seeds = [], []
    for piece in pieces:
        science = {name: value for name, value in piece["science"].items() if name != "data_seed"}
        read.append(Piece(piece["start"], piece["end"], piece["stage"], science, piece_key(science)))
        seeds.append(int(piece["science"]["data_seed"]))
    return read, seeds


def base_science(base: Base, identities: Identities, init_seed: int) -> dict[str, Any]:
    """What names the state before token 0. The init seed matters only where weights are drawn from it."""
    weights = identities.carried if base.optimizer == "carried" else identities.weights
    science: dict[str, Any] = {
        "weights": weights or "unresolved-" + digest(dict(base.model)),
        "tokenizer": identities.tokenizer or "unresolved-" + digest(dict(base.tokenizer)),
        "optimizer": base.optimizer,
        "defaults": DEFAULTS_VERSION,
    }
    if base.from_scratch:
        science["init_seed"] = init_seed
    return science


class PathBuilder:
    """Turns treatments into pieces. What arms share (stages, mixtures, schedules) is described and hashed once."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self._of_stage: dict[tuple[Any, ...], tuple[list[Piece], Mapping[str, Any]]] = {}
        self._parts: dict[Any, tuple[dict[str, Any], str]] = {}
        self._keep: list[Stage] = []  # objects whose id() is a key above must stay alive

    def pieces(self, treatment: Treatment, seeds_change_at: int = 0) -> list[Piece]:
        """The whole path [0, tokens), contiguous, adjacent pieces of one description merged.

        seeds_change_at: the token at which replicates part (`seeds.from`), a boundary even where nothing else changes.
        """
        merged: list[Piece] = []
        for piece in self._unmerged(treatment):
            last = merged[-1] if merged else None
            if last is not None and last.key == piece.key and piece.start != seeds_change_at:
                merged[-1] = Piece(last.start, piece.end, last.stage, last.science, last.key)
            else:
                merged.append(piece)
        return merged

    def _unmerged(self, treatment: Treatment) -> list[Piece]:
        if treatment.lr is not None:
            return self._under_one_schedule(treatment)
        pieces: list[Piece] = []
        start = 0
        before: Mapping[str, Any] | None = None  # the piece of the schedule with which the stage before ended
        for stage, cold in zip(treatment.stages, _cold_from(treatment.stages), strict=True):
            base = (treatment.base.lr, treatment.base.tokens_seen)
            key = (id(stage), start, cold, None if before is None else tuple(before.items()), base)
            known = self._of_stage.get(key)
            if known is None:
                rates = stage_schedule(treatment, stage, start, before)
                known = [self._piece(stage, start, cold, *part) for part in rates], rates[-1][2]
                self._of_stage[key] = known
                self._keep.append(stage)
            pieces += known[0]
            start, before = start + stage.tokens, known[1]
        return pieces

    def _under_one_schedule(self, treatment: Treatment) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        for stage, cold in zip(treatment.stages, _cold_from(treatment.stages), strict=True):
            end = start + stage.tokens
            for first, last, lr in schedule(treatment):
                if first < end and last > start:
                    pieces.append(self._piece(stage, start, cold, max(first, start), min(last, end), lr))
            start = end
        return pieces

    def _piece(
        self, stage: Stage, stage_start: int, cold: int | None, start: int, end: int, lr: Mapping[str, Any]
    ) -> Piece:
        """One piece of a stage. Its key is the digest of the digests of its parts, each hashed once per study.

        cold: the token at which the optimizer's state was emptied by declaration, None where it never was.
        """
        parts = [
            self._part(("lr", *lr.values()), lambda: {"lr": dict(lr)}),
            self._part(("mixture", stage.mixture), lambda: self._mixture(stage)),
            self._part(("context", stage.context), lambda: {"context": context_science(stage.context)}),
            self._part(("optimizer", stage.optimizer), lambda: {"optimizer": _optimizer(stage)}),
            self._part(("precision", stage.precision), lambda: {"precision": stage.precision}),
            self._part(("batch", stage.batch_tokens), lambda: {"batch_tokens": stage.batch_tokens}),
        ]
        if len(stage.mixture) > 1:
            # The blend's counters start with the stage; one source has nothing to count.
            parts.append(self._part(("blend", stage_start), lambda: {"blend_from": stage_start}))
        if cold is not None:
            parts.append(self._part(("cold", cold), lambda: {"optimizer_from": cold}))
        science: dict[str, Any] = {}
        for part, _ in parts:
            science.update(part)
        return Piece(start, end, stage.name, science, _key(name for _, name in parts))

    def _part(self, what: tuple[Any, ...], describe: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
        known = self._parts.get(what)
        if known is None:
            science = describe()
            known = self._parts[what] = science, part_key(science)
        return known

    def _mixture(self, stage: Stage) -> dict[str, Any]:
        return {
            "mixture": {name: f"{share.numerator}/{share.denominator}" for name, share in stage.mixture},
            "sources": {name: self._identities.source(name) for name, _ in stage.mixture},
        }


def _cold_from(stages: Sequence[Stage]) -> list[int | None]:
    """For each stage the token at which its optimizer's state began, by declaration.

    None where it began with the base, or where another optimizer took over, which says so itself. It goes on through
    the stages that carry the state: the same work under another cut has the same name. Two cold stages in a row begin
    at two tokens, so that their pieces are never merged.
    """
    found: list[int | None] = []
    begun: int | None = None
    at = 0
    for index, stage in enumerate(stages):
        if index and stages[index - 1].optimizer.name != stage.optimizer.name:
            begun = None
        elif index and stage.optimizer.state == "cold":
            begun = at
        found.append(begun)
        at += stage.tokens
    return found


def seeds_change_at(treatment: Treatment, from_stage: str | None) -> int:
    """The token from which replicates differ: the start of `seeds.from`, 0 without one."""
    at = 0
    for stage in treatment.stages:
        if from_stage is None or stage.name == from_stage:
            break
        at += stage.tokens
    return at


def data_seeds(pieces: Sequence[Piece], change_at: int, seed: int) -> list[int]:
    """The data seed of each piece: the trunk's before `change_at`, the replicate's own after."""
    if change_at == 0:
        return [seed] * len(pieces)
    return [seed if piece.start >= change_at else TRUNK_DATA_SEED for piece in pieces]


def context_science(context: Context) -> dict[str, Any]:
    """What a path says of its rows."""
    declared = context.rope
    rope: dict[str, Any] = {"type": declared.type}
    for name in ("theta", "factor", "original"):
        if getattr(declared, name) is not None:
            rope[name] = getattr(declared, name)
    rope |= declared.parameters
    return {
        "length": context.length,
        "documents": context.documents,
        "packing": context.packing,
        "rope": rope,
    }


def _optimizer(stage: Stage) -> dict[str, Any]:
    """What the optimizer takes, in full; of what any optimizer may have beside it, only what is turned on."""
    declared = stage.optimizer
    science: dict[str, Any] = {"name": declared.name}
    if declared.betas is not None:
        science["betas"] = list(declared.betas)
    if declared.eps is not None:
        science["eps"] = declared.eps
    if declared.momentum is not None:
        science["momentum"] = declared.momentum
    science |= {"weight_decay": declared.weight_decay, "clip": declared.clip}
    if declared.z_loss:
        science["z_loss"] = declared.z_loss
    if not declared.decay_embeddings and declared.weight_decay:  # no decay is none on embeddings, too
        science["decay_embeddings"] = False
    if declared.ema is not None:
        science["ema"] = declared.ema
    if declared.label_smoothing:
        science["label_smoothing"] = declared.label_smoothing
    if declared.skip_spikes is not None:
        science["skip_spikes"] = {"window": declared.skip_spikes.window, "sigma": declared.skip_spikes.sigma}
    return science


def difference(value: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`value` without what equals `defaults`, mappings compared field by field."""
    result: dict[str, Any] = {}
    for name, item in value.items():
        default = defaults.get(name, _ABSENT)
        if isinstance(item, dict) and isinstance(default, dict) and name != "rope":
            rest = difference(item, default)
            if rest:
                result[name] = rest
        elif item != default:
            result[name] = item
    return result


_ABSENT = object()
