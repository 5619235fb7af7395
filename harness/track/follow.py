"""The process that follows a results folder and hands it on to trackers: `python -m harness.track.follow`.

    starter  → follower   one JSON line {"folder", "targets", "part"}; then stdin stays open while there is work
    follower → starter    {"standings": [...]}                          whenever one has changed

It sends while its stdin is open and makes one last pass when that ends, also when its starter was killed. It is a
process of its own, in a session of its own, so that no library, no network and no signal of a tracker gets near the
training. Only one works on a folder at a time (`track/.lock`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.store.layout import Folder
from harness.store.plans import read_plan
from harness.track.sender import Sender, senders
from harness.track.settings import Target
from harness.track.tracker import Tracker, make_tracker

POLL_SECONDS = 2.0
SHARE = 0.1  # of the time that may be spent looking for news


def main() -> None:
    order = json.loads(sys.stdin.readline())
    ended = threading.Event()
    threading.Thread(target=_until_eof, args=(ended,), daemon=True).start()
    folder = Folder(Path(order["folder"]))
    targets = [Target.from_json(value) for value in order["targets"]]
    part = (int(order["part"][0]), int(order["part"][1]))
    words = _stdout_for_words()
    with _alone(folder, part), tempfile.TemporaryDirectory(prefix="ablate-track-") as scratch:
        plan = read_plan(folder)
        if plan is None:
            return

        def make(target: Target) -> Tracker:
            return make_tracker(target, folder, Path(scratch))

        follow(senders(folder, plan, targets, make, part), ended, words)


def follow(all_senders: Sequence[Sender], ended: threading.Event, words: Any) -> None:
    """Send what comes until `ended` is set, then once more, and close. words: a file for the standings."""
    said: list[Any] = []

    def tell() -> None:
        standings = [asdict(sender.standing) for sender in all_senders]
        if standings != said:
            said[:] = standings
            with contextlib.suppress(OSError, ValueError):  # the starter is gone; the last pass is made all the same
                print(json.dumps({"standings": standings}), file=words, flush=True)

    tell()
    while not ended.is_set():
        begun = time.monotonic()
        _tick(all_senders, tell)
        ended.wait(max(POLL_SECONDS, (time.monotonic() - begun) * (1 / SHARE - 1)))
    _tick(all_senders, tell)
    for sender in all_senders:
        sender.close()
        tell()


def _tick(all_senders: Sequence[Sender], tell: Any) -> None:
    for sender in all_senders:
        sender.tick(tell)
        tell()


def _until_eof(ended: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.read(1 << 16):
            pass
    ended.set()


def _stdout_for_words() -> Any:
    """Standings go to the stdout that we were given; what a library prints goes to stderr."""
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return words


@contextlib.contextmanager
def _alone(folder: Folder, part: tuple[int, int]) -> Iterator[None]:
    """Wait until no other process sends the folder: one whose starter was killed may be at its end. The parts of one
    `ablate sync` go side by side."""
    folder.track.mkdir(parents=True, exist_ok=True)
    with (folder.track / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX if part[1] == 1 else fcntl.LOCK_SH)
        yield


if __name__ == "__main__":
    main()
