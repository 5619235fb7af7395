"""The last job of a submission: `python -m harness.launch.slurm.close SUBMISSION`, on one processor.

It starts when all others have ended, however they ended: it ticks, so that what failed and may be tried again is, hands
the runs on to trackers, and writes the report. Where it submits something, that ends with a job like this one again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from harness.launch.progress import Silent
from harness.launch.slurm.client import Unreachable
from harness.launch.slurm.job import check_code
from harness.launch.slurm.task import task_of
from harness.launch.worker import PERFORM
from harness.store import processes, submissions
from harness.store.layout import Folder, SubmissionFolder
from harness.study.errors import UserError

TRIES, PAUSE_SECONDS = 20, 30.0  # for Slurm to answer: nobody comes after this job


class Printed(Silent):
    """Notes go to the job's log."""

    def note(self, text: str) -> None:
        print(text, flush=True)


def close(folder: Folder, perform: str = PERFORM) -> int:
    """Tick and report. Returns the exit code: 0, or 1 where runs have failed."""
    from analysis.report import build
    from harness.launch.slurm.again import again

    for left in reversed(range(TRIES)):
        try:
            done = again(folder, Printed(), last=True, perform=perform)
            break
        except Unreachable as error:
            if not left:
                build(folder.root)
                raise
            print(f"waiting for Slurm: {error}", flush=True)
            time.sleep(PAUSE_SECONDS)
    if done is None or done.report is None:
        build(folder.root)
    return 0 if done is None else done.ended.exit_code


def main(arguments: Sequence[str]) -> int:
    submission = SubmissionFolder(arguments[0])
    intent = submissions.read_intent(submission)
    if intent is None or submissions.is_void(submission):
        print("this submission was given up before Slurm accepted it: nothing to do")
        return 0
    check_code(intent.snapshot)
    task = task_of(os.environ)
    submissions.write_job(submission, task.job)
    processes.works_for({"submission": submission.number, "job": task.own, "restart": task.restart, "node": task.node})
    try:
        return close(Folder(submission.root.parents[1]), *arguments[1:])
    except UserError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
