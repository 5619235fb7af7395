"""Being told to stop: SIGINT, SIGTERM, SIGHUP and SIGUSR2 (Slurm's warning) ask for an orderly end.

A signal that was ignored when the process was started stays ignored: `nohup ablate run ... &` outlives its terminal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


class Stop:
    """While entered, notes the first stop signal; `signal` is its number, None while there was none.

    again: how many came later; a person who presses Ctrl-C twice does not want to wait.
    on_signal: called with the number inside the signal handler, for work that is done in this very process.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.again = 0
        self.on_signal: Callable[[int], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int) -> None:
        """Remember that `number` came."""
        if self.signal is None:
            self.signal = number
        else:
            self.again += 1

    def handles(self, number: int) -> bool:
        """Whether the handler of `number` is still this object's, and nobody's who came after it."""
        return signal.getsignal(number) == self._handle

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.note(number)
        if self.on_signal is not None:
            self.on_signal(number)
