"""What runs in a job: `python -m harness.launch.slurm.job SUBMISSION`, from the code snapshot.

The task with index i does the items of line i of the submission's array.jsonl, in order, and trusts nothing but the
results folder: what is done already is left out, a state that an item starts from is checked with its checksums, and
training goes on from the newest whole checkpoint, whoever wrote it. What it did it says in log/<i>.jsonl. Its exit code
is for Slurm alone: 0 lets the jobs that wait for it start.

A task of several processes (nodes, or GPUs of a node) is led by the first; the others train with it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.launch import failures
from harness.launch.slurm import asked, breaker, canary, client
from harness.launch.slurm.task import Task, task_of
from harness.launch.stop import Stop
from harness.launch.streams import captured
from harness.launch.work import Failure, Order, Result, Work
from harness.launch.worker import PERFORM, Perform, attempt, load_perform
from harness.store import attempts, processes, states, submissions
from harness.store.atomic import WriteFailed
from harness.store.layout import Folder, StateFolder, SubmissionFolder
from harness.store.markers import Damaged
from harness.store.processes import Observer
from harness.store.submissions import Intent

DONE, FAILED, AGAIN = 0, 1, 75
POLL_SECONDS = 1.0
LIVES_OF_AN_EVALUATION = 3
REQUEUE_SECONDS = 60.0  # until Slurm ends a job that it has taken back


class Interrupted(BaseException):
    """Raised inside work that cannot checkpoint when the job is told to stop."""


class Job:
    """One task at work."""

    def __init__(self, submission: SubmissionFolder, task: Task, perform: Perform) -> None:
        intent = submissions.read_intent(submission)
        if intent is None:
            raise SystemExit(f"{submission.intent} is missing or damaged: there is nothing to do")
        self._submission = submission
        self._folder = Folder(submission.root.parents[1])
        self._task = task
        self._perform = perform
        self._intent = intent
        self._element = submissions.read_element(submission, task.index)
        self._settings = {**intent.settings, **self._element.remedy}
        self._observer = Observer()
        self._ranks_are_lost = False

    def run(self) -> int:
        """Do what this task is for. Returns the exit code."""
        if submissions.is_void(self._submission):
            print("this submission was given up before Slurm accepted it: nothing to do")
            return DONE
        submissions.write_job(self._submission, self._task.job)
        held = breaker.reason(self._folder, self._intent.group)
        if held is not None:
            print(f"held: {held}")
            self._say("held", reason=held)
            return AGAIN
        self._say("started", job=self._task.own, node=self._task.node, remedy=dict(self._element.remedy))
        watch = canary.Watch(self._folder, self._submission, self._intent.group) if self._intent.canary else None
        try:
            with Stop() as stop:
                code = self._all(stop)
        finally:
            if watch is not None:
                watch.stop()
        breaker.consider(self._folder, self._submission, self._task.index)
        self._say("left", code=code)
        return code

    def _all(self, stop: Stop) -> int:
        code = DONE
        lost: set[str] = set()  # states that this job failed to make, or that will never be
        for item in map(Work.from_json, self._element.items):
            if lost.intersection(item.awaits):
                if item.makes is not None:
                    lost.add(item.makes)
                continue
            if stop.signal is not None:
                return 128 + stop.signal
            if item.id in asked.cancelled(self._folder):
                lost.add(item.state)
                continue
            result = self._one(item, stop)
            if result.outcome == "stopped":
                return self._stopped(item, stop)
            if result.outcome in ("failed", "diverged", "blocked", "unreachable") and item.makes is not None:
                lost.add(item.makes)
            code = code if result.failure is None else FAILED
            if self._ranks_are_lost:
                return FAILED  # what is left needs processes that are gone; the next job has them again
        return code

    def _one(self, item: Work, stop: Stop) -> Result:
        """Do one item, and say how it went."""
        there = self._outcome(item)
        if there is not None:
            return there
        self._say("began", item=item.id, at=states.newest_checkpoint(self._folder.state(item.state)))
        result = self._gate(item)
        if result is None:
            self._wait_for_others(item, stop)
            result = self._outcome(item) or self._do(item, stop)
        failure = result.failure
        said = {} if failure is None else {"failure": failure.kind, "error": failure.error}
        if result.outcome == "stopped":
            said["signal"] = signal.Signals(stop.signal or signal.SIGTERM).name
        state = self._folder.state(item.state)
        self._say("ended", item=item.id, outcome=result.outcome, at=states.newest_checkpoint(state), **said)
        return result

    def _outcome(self, item: Work) -> Result | None:
        """How an item that is done already ended, None when it is to be done."""
        if item.kind == "evaluate":
            return None  # what is there of it is left out where it is evaluated
        try:
            done = states.verify_state(self._folder.state(item.state))
        except Damaged:
            return None
        return None if done is None else Result(done.outcome)

    def _gate(self, item: Work) -> Result | None:
        """Whether all that the item starts from is there and whole. None: go on."""
        missing: Result | None = None
        for state in item.awaits:
            try:
                parent = states.verify_state(self._folder.state(state))
            except Damaged as reason:
                parent, why = None, f"the state that it starts from is damaged: {reason}"
            else:
                why = f"the state {state[:12]} that it starts from is not there"
            if parent is not None and parent.outcome == "diverged":
                return Result("unreachable")
            if parent is None and missing is None:
                missing = Result("blocked", Failure("parent", why))
        return missing

    def _wait_for_others(self, item: Work, stop: Stop) -> None:
        """Wait while another job is at work on the same state. An older life of this very job is not waited for:
        a node that died may have left it running, and the new attempt fences it."""
        said = False
        while stop.signal is None and item.kind != "evaluate":
            env = attempts.living_attempt(self._folder.state(item.state), self._observer)
            if env is None or (env.get("slurm") or {}).get("job") == self._task.own:
                return
            if not said:
                said = True
                print(f"waiting for {processes.described(env)}, which is at work on {item.name}")
            time.sleep(POLL_SECONDS)

    def _do(self, item: Work, stop: Stop) -> Result:
        def pass_on(number: int) -> None:
            if item.kind != "train":
                raise Interrupted

        if stop.signal is not None:
            return Result("stopped")
        order = Order(str(self._folder.root), item.kind, item.state, self._settings, item.detail)
        stop.on_signal = pass_on
        try:
            with captured(self._folder.state(item.state), item.kind):
                result = attempt(self._perform, order, lambda fields: None)
        except Interrupted:
            return Result("stopped")
        except WriteFailed as error:
            return Result("failed", failures.of_exception(error))
        finally:
            stop.on_signal = None
        self._ranks_are_lost = result.failure is not None and result.failure.kind == "rank"
        if result.outcome == "stopped" and stop.signal is None:
            stop.note(_trainers_signal(self._folder.state(item.state)))
        self._close_attempt(item, result)
        return result

    def _close_attempt(self, item: Work, result: Result) -> None:
        from harness.launch.executor import close_attempt

        close_attempt(self._folder, item, result)

    def _stopped(self, item: Work, stop: Stop) -> int:
        """Told to stop. Near the time limit, Slurm is asked to take the job back, so that the next one goes on from
        the checkpoint; otherwise it is Slurm's affair what happens next."""
        if stop.signal != signal.SIGUSR2 or not self._advanced(item):
            return 128 + (stop.signal or signal.SIGTERM)
        self._say("requeue")
        name = f"{self._task.job}_{self._task.index}" if self._intent.array else self._task.job
        if client.requeue(name):
            time.sleep(REQUEUE_SECONDS)
        return AGAIN

    def _advanced(self, item: Work) -> bool:
        """Whether this life of the job has brought its item forward: it would go round for ever otherwise."""
        began = [line for line in submissions.read_log(self._submission, self._task.index) if line["kind"] == "began"]
        if item.kind == "evaluate":  # each of its tasks is kept when it is done
            return sum(line["item"] == item.id for line in began) <= LIVES_OF_AN_EVALUATION
        now = states.newest_checkpoint(self._folder.state(item.state))
        return now is not None and (began[-1]["at"] is None or now > began[-1]["at"])

    def _say(self, kind: str, **fields: Any) -> None:
        submissions.say(self._submission, self._task.index, kind, restart=self._task.restart, **fields)


def _trainers_signal(state: StateFolder) -> int:
    """The signal that the trainer's own handler took."""
    for event in reversed(attempts.read_events(state)):
        if event["kind"] == "stopped" and event.get("signal") in signal.Signals.__members__:
            return int(signal.Signals[event["signal"]])
    return int(signal.SIGTERM)


def check_code(snapshot: str) -> None:
    """Leave unless this module is the snapshot's: other code must not train under its name."""
    here = Path(__file__).resolve()
    if snapshot not in (parent.name for parent in here.parents):
        raise SystemExit(f"this job was to run the code {snapshot[:12]}, and {here} is other code")


def main(arguments: Sequence[str]) -> int:
    # A warning that comes while torch is imported, before there is anything to checkpoint, is no reason to die.
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    submission, perform = SubmissionFolder(arguments[0]), arguments[1] if len(arguments) > 1 else PERFORM
    task = task_of(os.environ)
    fields = {"index": task.index, "job": task.own, "restart": task.restart, "node": task.node}
    processes.works_for({"submission": submission.number, **fields})
    intent = submissions.read_intent(submission)
    if intent is not None:
        check_code(intent.snapshot)
    try:
        if task.world == 1 or intent is None:
            return Job(submission, task, load_perform(perform)).run()
        return _together(submission, task, intent, load_perform(perform))
    except Exception:
        submissions.say(submission, task.index, "crashed", restart=task.restart, error=traceback.format_exc()[-2000:])
        raise


def _together(submission: SubmissionFolder, task: Task, intent: Intent, perform: Perform) -> int:
    """This process's part of a task of several."""
    from harness.launch.together import dismiss, follow, leading
    from harness.train.ranks import Ranks

    meet = submission.meeting(task.index, f"{task.own}-{task.restart}")
    meet.parent.mkdir(exist_ok=True)
    ranks = Ranks.join(task.rank, task.world, task.local_rank, meet, intent.settings["device"])
    if not ranks.leads:
        follow(ranks, perform)
        return DONE
    try:
        return Job(submission, task, leading(ranks, perform)).run()
    finally:
        dismiss(ranks)
        meet.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
