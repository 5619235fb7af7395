"""Evaluations: `evals/<weights>/<task key>/` with `results.json`, `samples.parquet` and a marker.

Named by the weights and the task alone: a suite is only a list, two arms with equal weights share a result, and a new
task costs one task.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.store.atomic import fsync_tree, like_any_file, publish, staging_folder, write_json, writing
from harness.store.layout import Folder
from harness.store.markers import MARKER, Damaged, checksum_files, read_marked, verify_files, write_marker

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 1


def write(folder: Folder, weights: str, key: str, results: Mapping[str, Any], samples: pyarrow.Table) -> None:
    """Store one task's result for one set of weights, all or nothing."""
    import pyarrow.parquet

    final = folder.evaluation(weights, key)
    staged = staging_folder(final)
    try:
        write_json(staged / "results.json", {**results, "schema": SCHEMA})
        with writing(staged / "samples.parquet", samples.nbytes):
            pyarrow.parquet.write_table(samples, staged / "samples.parquet", compression="zstd")
        like_any_file(staged)
        fsync_tree(staged)
        write_marker(staged, SCHEMA, {"weights": weights, "key": key}, checksum_files(staged))
        publish(staged, final, lambda there: exists(folder, weights, key))
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def read_results(folder: Folder, weights: str, key: str) -> dict[str, Any] | None:
    """The task's results, None when it was not evaluated. Raises Damaged when they are not whole."""
    root = folder.evaluation(weights, key)
    try:
        marker = read_marked(root / MARKER, SCHEMA)
    except FileNotFoundError:
        return None
    verify_files(root, marker["files"])
    return read_marked(root / "results.json", SCHEMA)


def exists(folder: Folder, weights: str, key: str) -> bool:
    """Whether a whole result is there: checksums hold."""
    try:
        return read_results(folder, weights, key) is not None
    except Damaged:
        return False


def read_samples(folder: Folder, weights: str, key: str) -> pyarrow.Table:
    """The task's items, one row each. Call after `exists`."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder.evaluation(weights, key) / "samples.parquet")
