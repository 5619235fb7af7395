"""`ablate status --watch` keeps a study's jobs going: what failed and may be tried again is submitted again."""

from __future__ import annotations

import time

from harness.launch.progress import Silent
from harness.store.layout import Folder
from harness.study.errors import UserError

TICK_SECONDS = 30.0
LOOK_SECONDS = 10.0  # between two looks of a person at a queue that others ask, too


class Ticker(Silent):
    """A tick now and then, none where nothing was ever submitted. said: what the last one had to say."""

    def __init__(self, folder: Folder) -> None:
        self.said: list[str] = []
        self._folder = folder
        self._next = 0.0

    @property
    def used(self) -> bool:
        return self._folder.submissions.is_dir()

    def note(self, text: str) -> None:
        self.said.append(text)

    def tick(self) -> None:
        """Tick if it is time. What keeps it from that is said, never raised; somebody else who is at work does it.
        Raises KeyboardInterrupt when that came while it submitted, which is done to its end."""
        if not self.used or time.monotonic() < self._next:
            return
        from harness.launch.lock import at_work
        from harness.launch.slurm.again import again

        self._next = time.monotonic() + TICK_SECONDS
        if at_work(self._folder):
            return
        self.said = []
        try:
            done = again(self._folder, self)
            if done is not None and done.ended.signal is not None:
                raise KeyboardInterrupt
        except UserError as error:
            self.said.append(str(error))
