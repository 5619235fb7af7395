"""How often the documents of a source are served: its own epochs, and those of other views of the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

Views = Mapping[str, Sequence[str]]  # source → other sources that hold its documents, too


def views(manifests: Mapping[str, Mapping[str, Any]]) -> Views:
    """Which sources hold the documents of which: those of one pool whose `min_length` is no larger. From manifests."""
    shortest = {name: int(manifest["declared"].get("min_length", 0)) for name, manifest in manifests.items()}
    pools = {name: manifest.get("pool") for name, manifest in manifests.items()}
    return {
        name: [
            other
            for other in manifests
            if other != name and pools[name] and pools[other] == pools[name] and shortest[other] <= shortest[name]
        ]
        for name in manifests
    }


def epochs(asked: Mapping[str, int], pools: Mapping[str, int], shared: Views) -> dict[str, Fraction]:
    """How often a document of each source is served, over all views of its pool; sources without a pool left out.

    asked: tokens drawn from each source; pools: its training tokens. A source's own epochs are tokens / pool; what
    another view of the same documents serves is added: exact to the pass that each view is in.
    """
    own = {name: Fraction(tokens, pools[name]) for name, tokens in asked.items() if pools.get(name)}
    return {name: own[name] + sum(own.get(other, Fraction(0)) for other in shared.get(name, ())) for name in own}
