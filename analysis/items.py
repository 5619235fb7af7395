"""A metric's items, read from an evaluation's samples: what item-level errors and exact tests are computed from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import Metric
from harness.store import evaluations
from harness.store.layout import Folder

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """A metric's items. Its value is Σ numerator / Σ denominator; denominators are 1 for a plain mean.

    identity: what must be equal for two runs to be paired: item number and the hashes of item and target.
    """

    identity: tuple[str, ...]
    numerator: Column
    denominator: Column
    ratio: bool


def read_items(folder: Folder, evaluation: str, metric: Metric, value: float) -> Items | None:
    """The metric's items in one evaluation; None when its samples do not carry it, or do not add up to `value`."""
    _, weights, key = evaluation.split("/")
    table = evaluations.read_samples(folder, weights, key)
    names = set(table.column_names)
    found = _fraction(table, names, str(metric.measure))
    if found is None:
        return None
    numerator, denominator, ratio = found
    total = float(denominator.sum())
    if not np.isfinite(numerator).all() or total <= 0.0:
        return None
    if abs(float(numerator.sum()) / total - value) > 1e-6 * max(1.0, abs(value)):
        return None
    hashes = [name for name in ("doc_id", "doc_hash", "target_hash") if name in names]
    rows = zip(*(table.column(name).to_pylist() for name in hashes), strict=True)
    return Items(tuple(json.dumps(row) for row in rows), numerator, denominator, ratio)


def _fraction(table: Any, names: set[str], measure: str) -> tuple[Column, Column, bool] | None:
    """A measure's (numerator, denominator, whether it is a ratio of sums) per item; None when it is no column."""
    if measure == "bits_per_byte" and {"nll", "bytes"} <= names:
        return _column(table, "nll") / np.log(2.0), _column(table, "bytes"), True
    if measure.startswith("nats_per_token"):
        bucket = measure.removeprefix("nats_per_token")
        if {f"nll{bucket}", f"tokens{bucket}"} <= names:
            return _column(table, f"nll{bucket}"), _column(table, f"tokens{bucket}"), True
    if measure in names:
        values = _column(table, measure)
        return values, np.ones(len(values)), False
    return None


def _column(table: Any, name: str) -> Column:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float64)
