"""Canonical JSON and its digest: the one way in which science becomes a name.

Canonical: keys sorted, no white space, UTF-8, integers and finite floats as Python writes them (shortest round trip),
fractions as "a/b". Anything else raises: a value without one spelling must not reach a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from typing import Any


class NotCanonical(TypeError):
    """A value that has no single spelling was about to be hashed: a defect of the harness, not of a study."""


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON. Raises NotCanonical for NaN, infinities, sets, objects and non-string keys."""
    return json.dumps(
        _checked(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _checked(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotCanonical(f"{value!r} is not finite")
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise NotCanonical(f"key {key!r} is not a string")
        return {key: _checked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    raise NotCanonical(f"{type(value).__name__} {value!r} has no canonical form")
