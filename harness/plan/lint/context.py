"""Whether a longer window is used: how far from their document's start the positions of a stage are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.plan.lint.codes import Lint
from harness.study.treatment import Arm, Stage

# Below this share of positions that can look farther back than before, the longer window is called unused. One in
# twenty is a choice of ours; recipes that extend a context make a third to two thirds of their text long (ProLong,
# 2410.02660: 60 %; Olmo 3's Longmino: 34 %), though not every position of a long document is a far one.
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Lengths:
    """What is known of lengths. beyond: by source, length → share of its training tokens that are at least that far
    from their document's start, from the manifests. base_context: positions that the base was trained with."""

    beyond: Mapping[str, Mapping[int, float]]
    base_context: int | None = None

    def share(self, source: str, length: int) -> float | None:
        """The share of a source's tokens at `length` or farther; None where the manifest does not say.

        Between the lengths that the manifest lists, that of the next shorter one: an upper bound.
        """
        known = self.beyond.get(source)
        below = [listed for listed in known or () if listed <= length]
        return None if not known or not below else known[max(below)]


def read_lengths(manifests: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any] | None) -> Lengths:
    """From the manifests of sources (`train.beyond`: length → tokens) and of the base."""
    beyond: dict[str, dict[int, float]] = {}
    for name, manifest in manifests.items():
        train = manifest.get("train") or {}
        total = train.get("tokens") or 0
        tokens_beyond = train.get("beyond")
        if isinstance(tokens_beyond, Mapping) and total:
            beyond[name] = {0: 1.0, **{int(length): tokens / total for length, tokens in tokens_beyond.items()}}
    return Lengths(beyond, (base or {}).get("max_positions"))


def context_unused(arm: Arm, baseline: Arm, lengths: Lengths) -> Iterator[Lint]:
    """A stage whose window is longer than the one before it, over documents that hardly reach beyond that one.

    The one before: of the stage before; of the base where it has weights; else of the baseline's stage of that name.
    Only where documents are masked from each other: joined ones fill any window. The share is the sources' own,
    weighted by the mixture; where rows cut documents it is smaller still.
    """
    before = None if arm.treatment.base.from_scratch else lengths.base_context
    for stage in arm.treatment.stages:
        reference = before if before is not None else _of_baseline(stage, baseline)
        if reference is not None and stage.context.length > reference and stage.context.documents == "masked":
            yield from _unused(arm, stage, reference, lengths)
        before = stage.context.length


def _of_baseline(stage: Stage, baseline: Arm) -> int | None:
    return next((other.context.length for other in baseline.treatment.stages if other.name == stage.name), None)


def _unused(arm: Arm, stage: Stage, before: int, lengths: Lengths) -> Iterator[Lint]:
    shares = [(share, lengths.share(source, before)) for source, share in stage.mixture]
    if any(beyond is None for _, beyond in shares):
        return  # not known: a source has no manifest yet
    used = sum(float(share) * beyond for share, beyond in shares if beyond is not None)
    if used < LEAST_SHARE:
        message = (
            f"`{stage.name}` has a window of {stage.context.length:,} positions, and {used:.2%} of its positions are "
            f"farther than {before:,}, the window before, from the start of their document (under {LEAST_SHARE:.0%}): "
            "masked documents that short make no use of it"
        )
        yield Lint("warning", "context-unused", arm.name, message)
