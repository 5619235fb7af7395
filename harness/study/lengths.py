"""Lengths in whole batches: stages, warm-ups, and the rest that a fixed total leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from harness.study.errors import Mistake
from harness.study.paths import Path, dotted
from harness.study.units import TokenCount, UnitError, whole_batches

Declared = tuple[str, TokenCount | Literal["rest"], int]  # name of a stage, its tokens, its batch in tokens


class Lengths:
    """Turns declared counts into tokens. `notes`: what was rounded, each once, in order of appearance."""

    def __init__(self) -> None:
        self.notes: dict[str, None] = {}
        self._known: dict[tuple[Path, str, int, int], int] = {}

    def fit(self, count: TokenCount, batch: int, path: Path, least: int = 1, start: int = 0) -> int:
        """Whole batches, counted from the token `start`, for the count at `path`.

        Raises Mistake when it does not fit or is below `least` batches.
        """
        key = (path, count.text, batch, start)
        if (known := self._known.get(key)) is None:
            try:
                known = start + whole_batches(TokenCount(count.value - start, count.about, count.text), batch)
            except UnitError as error:
                raise Mistake(path, str(error)) from None
            if known < start + least * batch:
                raise Mistake(path, f"{count.text} is less than half a batch; expected at least {batch:,} tokens")
            if known != count.value:
                batches = f" ({known // batch:,} batches of {batch:,})" if not start else ""
                self.notes[f"{dotted(path)}: {count.text} rounded to {known:,}{batches}"] = None
            self._known[key] = known
        return known

    def of_stages(self, stages: Sequence[Declared], total: TokenCount | None) -> list[int]:
        """Tokens of each stage. With a total, the one stage that says `rest` takes what the others leave."""
        rests = [name for name, count, _ in stages if count == "rest"]
        if rests and total is None:
            raise Mistake(
                ("stages", rests[0], "tokens"), "is `rest`, but there is no `total`; expected a count or a total"
            )
        if len(rests) > 1:
            raise Mistake(
                ("stages", rests[1], "tokens"), f"is `rest`, and so is `{rests[0]}`; expected exactly one stage to be"
            )
        if total is not None and not rests:
            raise Mistake(("total",), "is given, but no stage says `tokens: rest`; expected exactly one that does")
        fitted = [
            0 if count == "rest" else self.fit(count, batch, ("stages", name, "tokens"))
            for name, count, batch in stages
        ]
        if total is None:
            return fitted
        others = sum(fitted)
        return [
            self._rest(total, others, name, batch) if count == "rest" else length
            for (name, count, batch), length in zip(stages, fitted, strict=True)
        ]

    def _rest(self, total: TokenCount, others: int, name: str, batch: int) -> int:
        batches = (total.value - others) / batch
        rest = math.floor(batches + (Fraction(1, 2) if total.about else 0)) * batch
        if rest <= 0:
            raise Mistake(
                ("total",),
                f"{total.text} leaves nothing for `{name}`: the other stages take {others:,} tokens; expected more",
            )
        if not total.about and batches.denominator != 1:
            raise Mistake(
                ("total",),
                f"{total.text} leaves no whole number of batches of {batch:,} tokens for `{name}`; expected one of "
                f"the nearest, {others + rest:,} and {others + rest + batch:,}, or ~{total.text} to round",
            )
        if others + rest != total.value:
            self.notes[f"total: {total.text} rounded to {others + rest:,}, of which `{name}` takes {rest:,}"] = None
        return rest
