"""Shares of sources: read exactly, checked, and varied with something that absorbs the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from harness.study.errors import Mistake, nearest
from harness.study.paths import Path
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


def members(vary: str | Sequence[str]) -> tuple[str, ...]:
    """The sources of a group; one source is a group of one."""
    return (vary,) if isinstance(vary, str) else tuple(vary)


def absorb(
    mixture: Mapping[str, Any],
    vary: str | Sequence[str],
    values: Sequence[Fraction],
    absorbing: str,
    sources: Sequence[str],
    origin: Path,
    places: Sequence[Path],
) -> list[dict[str, Any]]:
    """The mixtures of an axis: `vary` takes each of `values`, `absorbing` (or all others in proportion) the difference.

    A group (several sources in `vary`) takes each value together and keeps its inner ratio. places: where each value
    is written. Raises Mistake, naming the largest share allowed, where the absorbing source would fall below 0.
    """
    group = members(vary)
    _check_sources(group, absorbing, sources, origin)
    shares = {name: parse_share(value) for name, value in mixture.items()}
    for name in group:
        shares.setdefault(name, Fraction(0))
    before = sum((shares[name] for name in group), Fraction(0))
    if len(group) > 1 and not before:
        message = f"{' and '.join(group)} have no share, so no ratio to keep; expected shares in the stage's mixture"
        raise Mistake((*origin, "vary"), message)
    others = {name: share for name, share in shares.items() if name not in group}
    mixed = []
    for value, place in zip(values, places, strict=True):
        if absorbing == PROPORTIONAL:
            changed = _in_proportion(others, before, value, place)
        else:
            changed = _from_one(absorbing, others, group, before, value, place)
        changed |= {name: shares[name] / before * value if before else value for name in group}
        ordered = [name for name in (*shares, absorbing) if name in changed]
        mixed.append({name: write_share(changed[name]) for name in dict.fromkeys(ordered)})
    return mixed


def _check_sources(group: Sequence[str], absorbing: str, sources: Sequence[str], origin: Path) -> None:
    for name in group:
        if name not in sources:
            raise Mistake((*origin, "vary"), f"there is no source `{name}`; {nearest(name, sources)}")
    if len(set(group)) < len(group):
        raise Mistake((*origin, "vary"), "names a source twice; expected each once")
    if absorbing in group:
        raise Mistake((*origin, "absorb"), f"`{absorbing}` cannot absorb its own share; expected another source")
    if absorbing != PROPORTIONAL and absorbing not in sources:
        valid = [*(name for name in sources if name not in group), PROPORTIONAL]
        raise Mistake((*origin, "absorb"), f"there is no source `{absorbing}`; {nearest(absorbing, valid)}")


def _in_proportion(
    others: Mapping[str, Fraction], before: Fraction, value: Fraction, place: Path
) -> dict[str, Fraction]:
    total = sum(others.values(), Fraction(0))
    if not total and value != before:
        message = f"no other source can absorb {write_share(before - value)}; expected {write_share(before)}"
        raise Mistake(place, message)
    scale = (1 - value) / total if total else Fraction(0)
    return {name: share * scale for name, share in others.items()}


def _from_one(
    absorbing: str, others: Mapping[str, Fraction], group: Sequence[str], before: Fraction, value: Fraction, place: Path
) -> dict[str, Fraction]:
    most = before + others.get(absorbing, Fraction(0))
    if value > most:
        raise Mistake(
            place,
            f"`{'+'.join(group)}` at {write_share(value)} would take `{absorbing}` below 0; expected at most "
            f"{write_share(most)}, the largest share allowed",
        )
    return {**others, absorbing: most - value}
