"""What the task files beside this one call: `!function local.NAME`. Imported by lm-eval from this folder's path."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets


def load(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The items of a JSON-lines file that lies beside this module, whatever the working directory, as split `test`.

    lm-eval passes the task's `dataset_kwargs` (here `file`) and its metadata, which is not needed.
    """
    lines = (Path(__file__).parent / file).read_text("utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def continuation_bits_per_byte(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Loss of the item's continuation given its context, in bits per UTF-8 byte of the continuation."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": -loglikelihood / (math.log(2) * len(doc["continuation"].encode("utf-8")))}
