"""A piece of a path, as far as data goes: an interval in which one description holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

CONCAT, BEST_FIT = PACKINGS = ("concat", "best-fit")


@dataclass(frozen=True, slots=True)
class DataPiece:
    """What the loader needs of a piece. names: sources in the order of their names, which breaks the blend's ties."""

    start: int
    end: int
    names: tuple[str, ...]
    shares: tuple[Fraction, ...]
    identities: tuple[str, ...]
    blend_from: int | None
    data_seed: int
    batch_tokens: int
    length: int
    masked: bool
    packing: str

    @classmethod
    def read(cls, piece: Mapping[str, Any]) -> DataPiece:
        """A piece as segment.json has it. ValueError when it does not hold whole batches of whole rows."""
        science = piece["science"]
        context = science["context"]
        shares = {name: Fraction(share) for name, share in science["mixture"].items() if Fraction(share) > 0}
        names = tuple(sorted(shares))
        if context["packing"] not in PACKINGS or context["documents"] not in ("masked", "joined"):
            raise ValueError(f"context {context} is not known")
        read = cls(
            start=piece["start"],
            end=piece["end"],
            names=names,
            shares=tuple(shares[name] for name in names),
            identities=tuple(science["sources"][name] for name in names),
            blend_from=science.get("blend_from") if len(names) > 1 else None,
            data_seed=science["data_seed"],
            batch_tokens=science["batch_tokens"],
            length=context["length"],
            masked=context["documents"] == "masked",
            packing=context["packing"],
        )
        if len(names) > 1 and read.blend_from is None:
            raise ValueError(f"piece [{read.start}, {read.end}): a mixture without blend_from")
        if read.batch_tokens % read.length or (read.end - read.start) % read.batch_tokens:
            raise ValueError(f"piece [{read.start}, {read.end}): not whole batches of whole rows")
        return read

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.batch_tokens // self.length
