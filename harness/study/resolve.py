"""A study's plain values become a `Treatment`: exact integers, exact shares, no defaults left open.

The values were validated before (the study as a whole, an arm's changes one by one), so what can still be wrong is
between fields. Arms share nearly everything, so everything is resolved once: blocks that are the same object, or
equal as written, yield the same records, and equal stages are one `Stage` object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from harness.study.bases import resolve_base
from harness.study.errors import Mistake, nearest
from harness.study.idle import check_rate
from harness.study.includes import merge
from harness.study.lengths import Lengths
from harness.study.mixtures import read_mixture
from harness.study.optimizers import check_stages, check_states, read_optimizer, switches
from harness.study.paths import Path
from harness.study.schedules import Declared, Setting, read_schedule, resolve_schedule, resolve_whole, seen
from harness.study.schema import description_of
from harness.study.treatment import Base, Context, LearningRate, Optimizer, Rope, Stage, Treatment
from harness.study.units import TokenCount, parse_size, parse_tokens


class _Parts(NamedTuple):
    """A stage whose length and schedule are still open: they depend on the other stages."""

    name: str
    tokens: TokenCount | Literal["rest"]
    batch_tokens: int
    mixture: tuple[tuple[str, Fraction], ...]
    context: Context
    precision: Literal["fp32", "bf16-mixed"]
    optimizer: Optimizer
    lr: Declared | None


class Resolver:
    """Resolves documents of one study.

    check: called once for every distinct (stage, token of its path at which it starts); may raise Mistake.
    """

    def __init__(self, sources: Sequence[str], check: Callable[[Stage, int], None]) -> None:
        self.lengths = Lengths()
        self._sources = list(sources)
        self._check = check
        self._checked: set[tuple[int, int]] = set()
        self._read: dict[tuple[str, str, int, int], Any] = {}  # a field as inherited and as written → its record
        self._equal: dict[Any, Any] = {}  # record → the first record that equals it
        self._parts: dict[tuple[str, int, int], _Parts] = {}
        self._schedules: dict[Hashable, LearningRate] = {}
        self._stages: dict[Hashable, Stage] = {}
        self._totals: dict[Hashable, list[int]] = {}
        self._bases: dict[int, Base] = {}
        self._alive: list[Any] = []  # objects whose id() is a key above must stay alive

    def treatment(self, document: Mapping[str, Any]) -> Treatment:
        """The treatment that `document` describes. Raises Mistake."""
        base = self._base(document["base"])
        train = document.get("train", {})
        parts = [self._stage_parts(name, train, own) for name, own in document["stages"].items()]
        tokens = self._lengths(parts, document.get("total"))
        whole: LearningRate | None = None
        if "lr" in document:
            declared = read_schedule(document["lr"], ("lr",))
            shape = [(part.name, length, part.batch_tokens) for part, length in zip(parts, tokens, strict=True)]
            _check_one_schedule(parts, train)
            whole = resolve_whole(declared, parts[0].optimizer.lr, shape, base, self.lengths)
        stages: list[Stage] = []
        start = 0
        for part, length in zip(parts, tokens, strict=True):
            lr = None if whole else self._schedule(part, length, base, stages)
            if not whole:
                check_rate(part.name, document["stages"][part.name], part.lr, part.optimizer.lr, stages)
            stages.append(self._stage(part, length, lr, start))
            start += length
        check_stages(stages)
        check_states(base, stages, document["stages"][stages[0].name].get("optimizer") or {})
        _check_packing(stages)
        self.lengths.notes |= dict.fromkeys(switches(stages))
        return Treatment(base, tuple(stages), whole)

    def _base(self, block: Mapping[str, Any]) -> Base:
        if (known := self._bases.get(id(block))) is None:
            known = self._bases[id(block)] = resolve_base(block, self._sources)
            self._alive.append(block)
        return known

    def _stage_parts(self, name: str, train: Mapping[str, Any], own: Mapping[str, Any]) -> _Parts:
        key = (name, id(train), id(own))
        if (known := self._parts.get(key)) is None:
            self._alive += (train, own)
            known = self._parts[key] = _Parts(name, *[self._field(name, field, train, own) for field in _FIELDS])
        return known

    def _field(self, name: str, field: str, train: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """The record of one field of a stage, with what it inherits."""
        inherited, written = train.get(field), own.get(field)
        key = (name, field, id(inherited), id(written))
        if key not in self._read:
            block = inherited if written is None else merge(inherited, written, ("train", field))
            record = self._read_field(field, block, ("stages", name, field))
            self._read[key] = self._equal.setdefault(record, record)
            self._alive += (inherited, written)
        return self._read[key]

    def _read_field(self, field: str, block: Any, path: Path) -> Any:
        if block is None:
            if field in UNWRITTEN:
                return UNWRITTEN[field]
            raise missing(path)
        return read_mixture(block, self._sources, path) if field == "mixture" else _READERS[field](block, path)

    def _lengths(self, parts: Sequence[_Parts], total: Any) -> list[int]:
        key = (total, *[(id(part.tokens), part.batch_tokens) for part in parts])
        if (known := self._totals.get(key)) is None:
            declared = [(part.name, part.tokens, part.batch_tokens) for part in parts]
            known = self.lengths.of_stages(declared, None if total is None else parse_tokens(total))
            self._totals[key] = known
        return known

    def _schedule(self, part: _Parts, tokens: int, base: Base, before: Sequence[Stage]) -> LearningRate:
        path = ("stages", part.name, "lr")
        if part.lr is None:
            raise missing(path)
        last = before[-1].lr if before else None
        ended = last.end if last is not None else None
        of_base = (base.lr, seen(base))
        key = (path, id(part.lr), part.optimizer.lr, tokens, part.batch_tokens, not before, ended == 0, of_base)
        if (known := self._schedules.get(key)) is None:
            peak, batch = part.optimizer.lr, part.batch_tokens
            setting = Setting(path, peak, tokens, batch, base.lr, not before, ended, seen(base))
            known = resolve_schedule(part.lr, setting, self.lengths)
            known = self._schedules[key] = self._equal.setdefault(known, known)
        return known

    def _stage(self, part: _Parts, tokens: int, lr: LearningRate | None, start: int) -> Stage:
        records = (id(part.mixture), id(part.context), id(part.optimizer), id(lr))
        key = (part.name, tokens, part.batch_tokens, part.precision, *records)
        if (stage := self._stages.get(key)) is None:
            stage = self._stages[key] = Stage(
                name=part.name,
                tokens=tokens,
                batch_tokens=part.batch_tokens,
                mixture=part.mixture,
                context=part.context,
                precision=part.precision,
                optimizer=part.optimizer,
                lr=lr,
            )
            _check_rows(stage)
        if (id(stage), start) not in self._checked:
            self._checked.add((id(stage), start))
            self._check(stage, start)
        return stage


def missing(path: Path) -> Mistake:
    """A field that neither a stage nor `train` has."""
    stage_only = path[-1] == "tokens"
    where = "" if stage_only else " here and in `train`"
    return Mistake(path, f"is missing{where}; expected {description_of(path)}")


def _tokens(value: Any, path: Path) -> TokenCount | Literal["rest"]:
    if isinstance(value, Mapping):
        raise Mistake(path, "`flops_of` takes its length from another arm, so it belongs to an arm; expected a count")
    return "rest" if value == "rest" else parse_tokens(value)


def read_context(block: Mapping[str, Any], path: Path) -> Context:
    """Context of a stage with its defaults: documents masked, packing concat, rope as the base has it."""
    if "length" not in block:
        raise missing((*path, "length"))
    return Context(
        length=parse_size(block["length"]),
        documents=block.get("documents", "masked"),
        packing=block.get("packing", "concat"),
        rope=_rope(block.get("rope", "base"), (*path, "rope")),
    )


_ROPE_TAKES: Mapping[str, tuple[str, ...]] = {
    "default": ("theta",),
    "linear": ("theta", "factor", "original"),
    "ntk": ("theta", "factor", "original"),
    "dynamic": ("theta", "factor", "original"),
    "yarn": ("theta", "factor", "original", "beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("theta", "factor", "original", "low_freq_factor", "high_freq_factor"),
}


def _rope(block: str | Mapping[str, Any], path: Path) -> Rope:
    if isinstance(block, str):
        return Rope()
    if "type" not in block:
        raise Mistake((*path, "type"), f"is missing; expected {description_of((*path, 'type'))}")
    kind = block["type"]
    takes = _ROPE_TAKES[kind]
    for key in block:
        if key != "type" and key not in takes:
            raise Mistake((*path, key), f"the rope type {kind} takes no `{key}`; {nearest(key, takes)}", at_key=True)
    needed = "theta" if kind == "default" else "factor"
    if needed not in block:
        raise Mistake((*path, needed), f"is missing; expected {description_of((*path, needed))}")
    factor = block.get("factor")
    if kind == "dynamic" and factor == "auto":
        message = "dynamic follows context.length by itself, so it takes no `auto`"
        raise Mistake((*path, "factor"), f"{message}; expected a number above 1, such as 2")
    if kind in ("linear", "ntk") and factor != "auto" and "original" in block:
        message = f"`original` says nothing beside {kind}'s factor of {factor:g}, which is taken as it is"
        raise Mistake((*path, "original"), f"{message}; expected it with `factor: auto` alone", at_key=True)
    own = [key for key in takes if key not in ("theta", "factor", "original") and key in block]
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        if low in block and high in block and block[low] >= block[high]:
            raise Mistake((*path, low), f"{block[low]} is not below {high}; expected less than {block[high]}")
    return Rope(
        type=kind,
        theta=float(block["theta"]) if "theta" in block else None,
        factor=float(factor) if isinstance(factor, int | float) else factor,
        original=parse_size(block["original"]) if "original" in block else None,
        parameters=tuple((key, float(block[key])) for key in own),
    )


def _check_one_schedule(parts: Sequence[_Parts], train: Mapping[str, Any]) -> None:
    """A schedule over all stages leaves no room for schedules, or other peaks, of single stages."""
    for part in parts:
        if part.lr is not None:
            path = ("train", "lr") if "lr" in train else ("stages", part.name, "lr")
            raise Mistake(path, "the top-level `lr` is one schedule over all stages; expected one of the two", True)
        if part.optimizer.lr != parts[0].optimizer.lr:
            raise Mistake(
                ("stages", part.name, "optimizer", "lr"),
                f"{part.optimizer.lr} differs from {parts[0].optimizer.lr} of `{parts[0].name}`; expected one peak "
                "rate for the top-level `lr`, which is one schedule over all stages",
            )


def _check_packing(stages: Sequence[Stage]) -> None:
    """Best-fit may follow concatenation, which stops anywhere; a window of best-fit is not left half served."""
    for before, stage in itertools.pairwise(stages):
        if before.context.packing == "best-fit" and stage.context.packing == "concat":
            raise Mistake(
                ("stages", stage.name, "context", "packing"),
                f"concat after the best-fit of `{before.name}` is not supported; expected best-fit in `{stage.name}`, "
                f"too, or concat in `{before.name}`",
            )


def _check_rows(stage: Stage) -> None:
    if stage.batch_tokens % stage.context.length:
        below = stage.batch_tokens // stage.context.length * stage.context.length
        near = [str(size) for size in (below, below + stage.context.length) if size]
        raise Mistake(
            ("stages", stage.name, "context", "length"),
            f"a batch of {stage.batch_tokens} tokens is not a whole number of rows of {stage.context.length}; "
            f"expected a length that divides it, or batch_tokens of {' or '.join(near)}",
        )


_FIELDS = _Parts._fields[1:]
UNWRITTEN: Mapping[str, Any] = {"precision": "fp32", "lr": None}  # a schedule may stand at the top level instead
_READERS: Mapping[str, Callable[[Any, Path], Any]] = {
    "tokens": _tokens,
    "batch_tokens": lambda value, path: parse_size(value),
    "context": read_context,
    "precision": lambda value, path: value,
    "optimizer": read_optimizer,
    "lr": read_schedule,
}
