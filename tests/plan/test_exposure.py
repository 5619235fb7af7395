"""Views of one pool share its exposure counts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from harness.plan.exposure import epochs, views


def manifest(pool: str, min_length: int = 0) -> dict[str, Any]:
    return {"declared": {"min_length": min_length} if min_length else {}, "pool": pool}


MANIFESTS = {"web": manifest("a"), "long": manifest("a", 512), "longer": manifest("a", 1024), "code": manifest("b")}


def test_a_document_is_held_by_every_view_that_asks_for_no_more_tokens() -> None:
    assert views(MANIFESTS) == {"web": [], "long": ["web"], "longer": ["web", "long"], "code": []}
    assert views({"old": {"declared": {}}, "other": {"declared": {}}}) == {"old": [], "other": []}, "manifests without"


def test_what_other_views_serve_counts() -> None:
    asked, pools = {"web": 1000, "long": 300, "longer": 100, "code": 50}, {"web": 2000, "long": 600, "longer": 200}
    assert epochs(asked, pools, views(MANIFESTS)) == {
        "web": Fraction(1, 2),
        "long": Fraction(1, 2) + Fraction(1, 2),
        "longer": Fraction(1, 2) + Fraction(1, 2) + Fraction(1, 2),
    }
