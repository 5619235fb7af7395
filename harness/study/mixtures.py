"""Shares of sources: read exactly, checked, and varied with something that absorbs the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.paths import Path
from harness.study.schema import MixtureAxis
from harness.study.units import UnitError, parse_share, write_share

PROPORTIONAL = "proportional"


def read_mixture(mixture: Mapping[str, Any], sources: Sequence[str], path: Path) -> tuple[tuple[str, Fraction], ...]:
    """The shares of a mixture in the order of `sources`, zeros dropped. Raises Mistake unless they sum to 1."""
    shares: dict[str, Fraction] = {}
    for name, value in mixture.items():
        if name not in sources:
            raise Mistake((*path, name), f"there is no source `{name}`; {nearest(name, sources)}", at_key=True)
        try:
            shares[name] = parse_share(value)
        except UnitError as error:
            raise Mistake((*path, name), str(error)) from None
    total = sum(shares.values(), Fraction(0))
    if total != 1:
        raise Mistake(path, f"the shares sum to {write_share(total)}; expected 1")
    return tuple((name, shares[name]) for name in sources if shares.get(name))


def absorb(mixture: Mapping[str, Any], axis: MixtureAxis, sources: Sequence[str], origin: Path) -> list[dict[str, Any]]:
    """The mixtures of an axis: `vary` takes each value, `absorb` (or all others in proportion) the difference.

    Raises Mistake, naming the largest share allowed, where the absorbing source would fall below 0.
    """
    _check_sources(axis, sources, origin)
    shares = {name: parse_share(value) for name, value in mixture.items()}
    shares.setdefault(axis.vary, Fraction(0))
    return [
        {name: write_share(share) for name, share in _absorbed(shares, axis, value, (*origin, "values", index)).items()}
        for index, value in enumerate(axis.values)
    ]


def _check_sources(axis: MixtureAxis, sources: Sequence[str], origin: Path) -> None:
    if axis.vary not in sources:
        raise Mistake((*origin, "vary"), f"there is no source `{axis.vary}`; {nearest(axis.vary, sources)}")
    if axis.absorb == axis.vary:
        raise Mistake((*origin, "absorb"), f"`{axis.vary}` cannot absorb its own share; expected another source")
    if axis.absorb != PROPORTIONAL and axis.absorb not in sources:
        valid = [*(name for name in sources if name != axis.vary), PROPORTIONAL]
        raise Mistake((*origin, "absorb"), f"there is no source `{axis.absorb}`; {nearest(axis.absorb, valid)}")


def _absorbed(shares: Mapping[str, Fraction], axis: MixtureAxis, value: Fraction, origin: Path) -> dict[str, Fraction]:
    before = shares[axis.vary]
    if axis.absorb == PROPORTIONAL:
        others = sum(shares.values(), Fraction(0)) - before
        if not others and value != before:
            raise Mistake(
                origin, f"no other source can absorb {write_share(before - value)}; expected {write_share(before)}"
            )
        scale = (1 - value) / others if others else Fraction(0)
        return {name: value if name == axis.vary else share * scale for name, share in shares.items()}
    most = before + shares.get(axis.absorb, Fraction(0))
    if value > most:
        raise Mistake(
            origin,
            f"`{axis.vary}` at {write_share(value)} would take `{axis.absorb}` below 0; expected at most "
            f"{write_share(most)}, the largest share allowed",
        )
    return {**shares, axis.vary: value, axis.absorb: most - value}
