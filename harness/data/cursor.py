"""Where a path is in its data, as it is kept beside every checkpoint (cursor.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CURSOR_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SourceCursor:
    """Where one source is. document: ordinal in its endless sequence; token: offset inside it (the next one).

    reshuffles: (ordinal, seed) pairs that order the sequence. tokens, labels: served along the path so far.
    """

    document: int
    token: int
    reshuffles: tuple[tuple[int, int], ...]
    tokens: int
    labels: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a path is in its data. Sources that were never drawn from are absent.

    blend_from: path token at which the blend's counters started, None before any blend. blend_counts: rows since.
    """

    sources: Mapping[str, SourceCursor] = field(default_factory=dict)
    blend_from: int | None = None
    blend_counts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives the same cursor back."""
        blend = None
        if self.blend_from is not None:
            blend = {"from": self.blend_from, "counts": dict(sorted(self.blend_counts.items()))}
        sources = {
            name: {
                "document": at.document,
                "token": at.token,
                "reshuffles": [list(pair) for pair in at.reshuffles],
                "tokens": at.tokens,
                "labels": at.labels,
            }
            for name, at in sorted(self.sources.items())
        }
        return {"schema": CURSOR_SCHEMA, "sources": sources, "blend": blend}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Cursor:
        """ValueError for a cursor of another schema."""
        if value.get("schema") != CURSOR_SCHEMA:
            raise ValueError(f"cursor schema {value.get('schema')}, this version reads {CURSOR_SCHEMA}")
        sources = {
            name: SourceCursor(
                at["document"],
                at["token"],
                tuple((ordinal, seed) for ordinal, seed in at["reshuffles"]),
                at["tokens"],
                at["labels"],
            )
            for name, at in value["sources"].items()
        }
        blend = value["blend"]
        return cls(sources, blend["from"], dict(blend["counts"])) if blend else cls(sources)
