"""Where a path is in its data, as it is kept beside every checkpoint (cursor.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CURSOR_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """A window of best-fit packing in use. length: of its rows; rows: served of it; begun: documents in those."""

    length: int
    rows: int
    begun: int


@dataclass(frozen=True, slots=True)
class SourceCursor:
    """Where one source is. document: ordinal in its endless sequence; token: offset inside it (the next one).

    reshuffles: (ordinal, seed) pairs that order the sequence. tokens, labels: served along the path so far, padding
    among the tokens. Of best-fit packing alone: window (document and token are where it begins), left: (document,
    start, stop) of documents that were begun and come first, moved: as in `DocumentSequence`.
    """

    document: int
    token: int
    reshuffles: tuple[tuple[int, int], ...]
    tokens: int
    labels: int
    window: OpenWindow | None = None
    left: tuple[tuple[int, int, int], ...] = ()
    moved: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def begun(self) -> int:
        """Documents of the sequence of which something was served."""
        return self.document + (self.token > 0) + (self.window.begun if self.window is not None else 0)


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
                **_packing(at),
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
                OpenWindow(**at["window"]) if "window" in at else None,
                tuple((document, start, stop) for document, start, stop in at.get("left", ())),
                tuple((ordinal, tuple(documents)) for ordinal, documents in at.get("moved", ())),
            )
            for name, at in value["sources"].items()
        }
        blend = value["blend"]
        return cls(sources, blend["from"], dict(blend["counts"])) if blend else cls(sources)


def _packing(at: SourceCursor) -> dict[str, Any]:
    """What only best-fit packing adds: keys that are absent where there is nothing to say."""
    found: dict[str, Any] = {}
    if at.window is not None:
        found["window"] = {"length": at.window.length, "rows": at.window.rows, "begun": at.window.begun}
    if at.left:
        found["left"] = [list(part) for part in at.left]
    if at.moved:
        found["moved"] = [[ordinal, list(documents)] for ordinal, documents in at.moved]
    return found
