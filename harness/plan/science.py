"""The science of a path: what names the work, piece by piece.

A path is cut into pieces, intervals of tokens in which one description holds. Each piece's science is a JSON object;
what a training job needs to do the work is in it and in the base, and nothing else names the work. Where training
is cut into jobs, where checkpoints lie, machines, workers and logging never appear here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.plan.canonical import digest
from harness.plan.schedule import end_rate, schedule, stage_schedule
from harness.study.treatment import TRUNK_DATA_SEED, Base, SeedSet, Stage, Treatment

# A science equal to these says nothing: only the difference is hashed, so an option added later with a neutral default
# re-keys nothing. A changed default needs a new version, which re-keys everything, as it should.
DEFAULTS_VERSION = 1
DEFAULTS: Mapping[str, Any] = {
    "context": {"documents": "masked", "packing": "concat", "rope": {"type": "base"}},
    "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
    "precision": "fp32",
}


@dataclass(frozen=True)
class Identities:
    """What the base and the sources are, from their manifests; None where nothing was resolved yet.

    An unresolved part is named by its declaration instead, so that a plan can be drawn; it is re-keyed when resolved.
    """

    weights: str | None
    tokenizer: str | None
    sources: Mapping[str, str | None]
    declared_sources: Mapping[str, Any]

    @property
    def unresolved(self) -> list[str]:
        """Names of what has no manifest yet: `base`, `tokenizer`, `sources.<name>`."""
        names = [name for name in ("weights", "tokenizer") if getattr(self, name) is None]
        return ["base" if name == "weights" else name for name in names] + [
            f"sources.{name}" for name, identity in self.sources.items() if identity is None
        ]

    def source(self, name: str) -> str:
        identity = self.sources.get(name)
        return identity or "unresolved-" + digest(self.declared_sources.get(name))


@dataclass(slots=True)
class Piece:
    """One interval [start, end) of a path. `science` lacks the data seed, which is kept beside it: arms share the rest.

    key: digest of the science's difference from the defaults; two pieces with one key and seed describe one work.
    """

    start: int
    end: int
    stage: str
    science: dict[str, Any]
    key: str
    data_seed: int

    def as_json(self) -> dict[str, Any]:
        """The piece as a job reads it."""
        return {
            "start": self.start,
            "end": self.end,
            "stage": self.stage,
            "science": {**self.science, "data_seed": self.data_seed},
        }


def base_science(base: Base, identities: Identities, init_seed: int) -> dict[str, Any]:
    """What names the state before token 0. The init seed matters only where weights are drawn from it."""
    science: dict[str, Any] = {
        "weights": identities.weights or "unresolved-" + digest(dict(base.model)),
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
        self._of_stage: dict[tuple[int, int, float | None], tuple[list[Piece], float]] = {}
        self._parts: dict[Any, tuple[dict[str, Any], str]] = {}
        self._keep: list[Stage] = []  # objects whose id() is a key above must stay alive

    def pieces(self, treatment: Treatment, seeds: SeedSet) -> list[Piece]:
        """The whole path [0, tokens), contiguous, adjacent pieces of one description merged."""
        return self.seeded(self.unseeded(treatment), treatment, seeds)

    def unseeded(self, treatment: Treatment) -> list[Piece]:
        """All pieces of a treatment, not merged, with data seed 0 throughout."""
        if treatment.lr is not None:
            return self._under_one_schedule(treatment)
        pieces: list[Piece] = []
        start, ended = 0, None
        for stage in treatment.stages:
            known = self._of_stage.get((id(stage), start, ended))
            if known is None:
                rates = stage_schedule(treatment, stage, start, ended)
                known = [self._piece(stage, start, *part) for part in rates], end_rate(rates[-1][2])
                self._of_stage[id(stage), start, ended] = known
                self._keep.append(stage)
            pieces += known[0]
            start, ended = start + stage.tokens, known[1]
        return pieces

    def _under_one_schedule(self, treatment: Treatment) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        for stage in treatment.stages:
            end = start + stage.tokens
            for first, last, lr in schedule(treatment):
                if first < end and last > start:
                    pieces.append(self._piece(stage, start, max(first, start), min(last, end), lr))
            start = end
        return pieces

    def _piece(self, stage: Stage, stage_start: int, start: int, end: int, lr: Mapping[str, Any]) -> Piece:
        """One piece of a stage. Its key is the digest of the digests of its parts, each hashed once per study."""
        parts = [
            self._part(("lr", *lr.values()), lambda: {"lr": dict(lr)}),
            self._part(("mixture", stage.mixture), lambda: self._mixture(stage)),
            self._part(("context", stage.context), lambda: {"context": _context(stage)}),
            self._part(("optimizer", stage.optimizer), lambda: {"optimizer": _optimizer(stage)}),
            self._part(("precision", stage.precision), lambda: {"precision": stage.precision}),
            self._part(("batch", stage.batch_tokens), lambda: {"batch_tokens": stage.batch_tokens}),
        ]
        if len(stage.mixture) > 1:
            # The blend's counters start with the stage; one source has nothing to count.
            parts.append(self._part(("blend", stage_start), lambda: {"blend_from": stage_start}))
        science: dict[str, Any] = {}
        for part, _ in parts:
            science.update(part)
        key = hashlib.sha256("\n".join(name for _, name in parts).encode()).hexdigest()
        return Piece(start, end, stage.name, science, key, 0)

    def _part(self, what: tuple[Any, ...], describe: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
        known = self._parts.get(what)
        if known is None:
            science = describe()
            known = self._parts[what] = science, digest(difference(science, DEFAULTS))
        return known

    def _mixture(self, stage: Stage) -> dict[str, Any]:
        return {
            "mixture": {name: f"{share.numerator}/{share.denominator}" for name, share in stage.mixture},
            "sources": {name: self._identities.source(name) for name, _ in stage.mixture},
        }

    def seeded(self, pieces: list[Piece], treatment: Treatment, seeds: SeedSet) -> list[Piece]:
        """`pieces` with the data seeds of one replicate, merged."""
        changes_at = 0
        if seeds.from_stage is not None:
            for stage in treatment.stages:
                if stage.name == seeds.from_stage:
                    break
                changes_at += stage.tokens
        merged: list[Piece] = []
        for piece in pieces:
            seed = seeds.data if piece.start >= changes_at else TRUNK_DATA_SEED
            last = merged[-1] if merged else None
            if last is not None and last.key == piece.key and last.data_seed == seed:
                last.end = piece.end
            else:
                merged.append(Piece(piece.start, piece.end, piece.stage, piece.science, piece.key, seed))
        return merged


def _context(stage: Stage) -> dict[str, Any]:
    rope: dict[str, Any] = {"type": stage.context.rope.type}
    if stage.context.rope.theta is not None:
        rope["theta"] = stage.context.rope.theta
    return {
        "length": stage.context.length,
        "documents": stage.context.documents,
        "packing": stage.context.packing,
        "rope": rope,
    }


def _optimizer(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.optimizer.name,
        "betas": list(stage.optimizer.betas),
        "eps": stage.optimizer.eps,
        "weight_decay": stage.optimizer.weight_decay,
        "clip": stage.optimizer.clip,
    }


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
