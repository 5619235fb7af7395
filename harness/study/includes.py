"""One rule for includes, inheritance from `train` and the changes of an arm: mappings merge by name.

Replaced whole: mixtures, rope settings, lists, and a schedule that names its shape, because half of an old one under
half of a new one is what nobody meant. Nothing is changed in place: what did not change is shared with the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Block = Mapping[str, Any]


def replaced_whole(path: Sequence[str], new: Block) -> bool:
    """Whether a mapping at `path` takes the place of the old one instead of merging with it."""
    if path[:1] == ("train",):
        path = path[1:]
    elif path[:1] == ("stages",):
        path = path[2:]
    elif path != ("lr",):
        return False
    return path in (("mixture",), ("context", "rope")) or (path == ("lr",) and "shape" in new)


def merge(old: Any, new: Any, path: tuple[str, ...] = ()) -> Any:
    """`new` over `old` at `path` of a study. Names keep the order of `old`; new names follow."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or replaced_whole(path, new):
        return new
    merged = dict(old)
    for key, value in new.items():
        merged[key] = merge(old[key], value, (*path, key)) if key in old else value
    return merged


def inherit(train: Block, stage: Block) -> Block:
    """A stage with what it inherits from `train`."""
    merged: Block = merge(train, stage, ("train",))
    return merged


def change(document: Block, path: tuple[str, ...], value: Any) -> Block:
    """`document` with `value` merged in at `path`; everything off the path is shared.

    A top-level `lr` is one schedule over all stages, so setting it removes the schedules of the stages. A single entry
    of a block that would be replaced whole is set in the block that the stage has or inherits.
    """
    if path[0] == "lr":
        document = _without_stage_schedules(document)
    elif path[0] == "stages" and len(path) > 3:
        document = _own_block(document, path)
    return _change(document, path, 0, value)


def _change(block: Block, path: tuple[str, ...], depth: int, value: Any) -> Block:
    key = path[depth]
    old = block.get(key)
    if depth + 1 < len(path):
        new: Any = _change(old if isinstance(old, dict) else {}, path, depth + 1, value)
    elif isinstance(value, dict):
        new = merge(old, value, path)
    else:
        new = value
    return {**block, key: new}


def _without_stage_schedules(document: Block) -> Block:
    changed = dict(document)
    if isinstance(train := document.get("train"), dict) and "lr" in train:
        changed["train"] = {key: value for key, value in train.items() if key != "lr"}
    stages = document.get("stages")
    if isinstance(stages, dict):
        changed["stages"] = {name: _without_lr(stage) for name, stage in stages.items()}
    return changed


def _without_lr(stage: Any) -> Any:
    if not isinstance(stage, dict) or "lr" not in stage:
        return stage
    return {key: value for key, value in stage.items() if key != "lr"}


def _own_block(document: Block, path: tuple[str, ...]) -> Block:
    """Give the stage its own copy of an inherited mixture, rope or schedule before one entry of it is set."""
    stage = document["stages"].get(path[1])
    train = document.get("train")
    if not isinstance(stage, dict) or not isinstance(train, dict):
        return document
    block = path[2:3] if path[2] in ("mixture", "lr") else path[2:4]
    if block not in (("mixture",), ("lr",), ("context", "rope")) or len(path) <= 2 + len(block):
        return document
    if block == ("lr",) and path[3] != "shape":
        return document  # merges with the inherited schedule as it is
    inherited: Any = inherit(train, stage)
    for key in block:
        inherited = inherited.get(key) if isinstance(inherited, dict) else None
    if not isinstance(inherited, dict):
        return document
    own = inherited if block != ("lr",) else {key: item for key, item in inherited.items() if key != "shape"}
    return _change(document, path[: 2 + len(block)], 0, dict(own))
