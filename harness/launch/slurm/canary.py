"""The first task of a group shows that its resources work; the others are held in Slurm until it has.

Held jobs are let go by whoever sees the first checkpoint first: the canary's own job, which watches for it, or a tick.
"""

from __future__ import annotations

import contextlib
import sys
import threading

from harness.launch.slurm import client
from harness.store import states, submissions
from harness.store.layout import Folder, SubmissionFolder
from harness.store.markers import MARKER, Damaged
from harness.study.errors import UserError

POLL_SECONDS = 1.0


def passed(folder: Folder, submission: SubmissionFolder) -> bool:
    """Whether the first training of a canary has a complete checkpoint, or an end."""
    for element in submissions.read_elements(submission):
        for item in element.items:
            if item["kind"] != "train":
                continue
            state = folder.state(item["state"])
            with contextlib.suppress(Damaged):
                if states.read_done(state) is not None:
                    return True
            if any((state.checkpoint(tokens) / MARKER).exists() for tokens in state.checkpoint_tokens()):
                return True
    return False


def held_for(folder: Folder, group: str) -> list[SubmissionFolder]:
    """The submissions that wait for a canary of `group`."""
    found = []
    for submission in folder.all_submissions():
        intent = submissions.read_intent(submission)
        waits = intent is not None and intent.held_for is not None and intent.group == group
        if waits and not submissions.is_void(submission):
            found.append(submission)
    return found


def release(folder: Folder, group: str) -> None:
    """Let go what waits for a canary of `group`. Raises client.Unreachable."""
    client.release(_jobs(folder, group))


def give_up(folder: Folder, group: str) -> None:
    """Cancel what waits for a canary that failed; `ablate retry` submits it again. Raises client.Unreachable."""
    client.cancel(_jobs(folder, group))


def _jobs(folder: Folder, group: str) -> list[str]:
    return [job for held in held_for(folder, group) if (job := submissions.read_job(held)) is not None]


class Watch(threading.Thread):
    """Watches for the canary's first checkpoint from inside its job. `stop` looks once more."""

    def __init__(self, folder: Folder, submission: SubmissionFolder, group: str) -> None:
        super().__init__(name="canary", daemon=True)
        self._folder = folder
        self._submission = submission
        self._group = group
        self._ended = threading.Event()
        self._released = -1
        self.start()

    def run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._look()

    def stop(self) -> None:
        self._ended.set()
        self.join(client.SECONDS)
        self._look()

    def _look(self) -> None:
        """What is submitted after the first checkpoint and held all the same is let go at the next look."""
        if not passed(self._folder, self._submission):
            return
        waiting = len(held_for(self._folder, self._group))
        if waiting == self._released:
            return
        try:
            release(self._folder, self._group)
        except UserError as error:  # the next tick does it
            print(f"held jobs could not be released from here: {error}", file=sys.stderr)
        self._released = waiting
