"""Python's garbage collector, kept out of training steps.

A full collection walks every object of the process, half a second with torch and transformers loaded, at a moment that
nobody chose. What is alive when training begins is set aside; afterwards a collection runs once in many updates.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 1000  # updates between two collections


class Collector:
    """Counts updates and collects now and then."""

    def __init__(self) -> None:
        self._updates = 0

    def after_update(self) -> None:
        """Call once an update."""
        self._updates += 1
        if self._updates % EVERY == 0:
            gc.collect()


@contextmanager
def held_back(device: str) -> Iterator[Collector]:
    """The collector runs when the block says so, and as before after it.

    device: of the training. On a CPU, where a step is long against a collection, none is made at the beginning: short
    segments would pay more for it than it saves.
    """
    enabled = gc.isenabled()
    if device == "cuda":
        gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield Collector()
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
