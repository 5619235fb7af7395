"""How the work of a study stands in Slurm, for `ablate status`: one look at the queue, nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.launch.slurm import asked, breaker, client, seen
from harness.launch.slurm.classes import End, judge
from harness.launch.slurm.seen import Submission
from harness.store import attempts, states
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.store.runs import is_merged
from harness.study.errors import UserError

# Slurm's words for why a task waits, where they tell a person of this tool something.
_WAITS = {"Dependency": "for what it starts from", "Priority": "", "Resources": "", "None": ""}
# States of a run of which the queue knows more.
OPEN = frozenset({"waiting", "stopped", "failed", "unevaluated"})
AT_WORK = frozenset({"training", "silent"})
RUNNING = frozenset({"RUNNING", "COMPLETING", "CONFIGURING"})


@dataclass
class Standings:
    """under_way: where items are in the queue. problem: why the queue could not be asked, None when it could."""

    folder: Folder
    under_way: Mapping[str, tuple[Submission, int]]
    tries: Mapping[str, Sequence[End]]
    cancelled: set[str]
    groups: Mapping[str, str]
    problem: str | None = None

    def of_run(self, run: Mapping[str, Any], state: str, detail: str) -> tuple[str, str]:
        """A run's state and detail with what the queue says of the first thing that is not done."""
        if state not in (*OPEN, *AT_WORK) or self.problem is not None:
            return state, detail
        items = [item for item in _items(run) if not _is_done(self.folder, item)]
        if state in AT_WORK and not self._left(items):
            return state, detail
        if any(item in self.cancelled for item in items):
            return "cancelled", "`ablate retry` lets it go on"
        for item in items:
            said = self._item(item)
            if said is not None:
                return said
        return state, detail

    def job_of(self, run: Mapping[str, Any]) -> str | None:
        """The first job in the queue that does what a run alone was for, None when there is none."""
        ends = {f"{kind}:{run['path'][-1]}" for kind in seen.KINDS}
        place = next((self.under_way[item] for item in ends if item in self.under_way), None)
        return None if place is None else place[0].word(place[1])

    def _left(self, items: Sequence[str]) -> bool:
        """Whether what seems to train was a job's and its job does not run any more: it ended without a word on a
        machine that cannot be asked."""
        item = next((item for item in items if item.startswith("train:")), None)
        if item is None:  # it was finished in this very moment
            return False
        state = self.folder.state(item.partition(":")[2])
        env = attempts.read_env(state, max(state.attempt_numbers(), default=0)) or {}
        if not env.get("slurm"):
            return False
        place = self.under_way.get(item)
        return place is None or place[0].live[place[1]].state not in RUNNING

    def _item(self, item: str) -> tuple[str, str] | None:
        if item in self.under_way:
            submission, index = self.under_way[item]
            return _in_queue(submission, index)
        state = self.folder.state(item.partition(":")[2])
        if item not in self.tries:
            return None
        verdict = judge(self.tries[item], states.newest_checkpoint(state))
        if verdict.hold is not None:
            return "held", f"{verdict.kind}: {verdict.hold}"
        group = self.groups.get(item)
        held = None if group is None else breaker.reason(self.folder, group)
        return ("held", held) if held is not None else ("lost", f"{verdict.kind}; the next tick submits it again")


def standings(folder: Folder, plan: Mapping[str, Any]) -> Standings | None:
    """What the queue says, None where nothing was ever submitted."""
    if not folder.all_submissions():
        return None
    try:
        found = seen.look(folder, client.look(folder))
    except UserError as error:
        return Standings(folder, {}, {}, set(), {}, str(error))
    groups = {
        item: one.intent.group
        for one in found.submissions
        if one.intent.kind == "work"
        for element in one.elements
        for item in element.ids
    }
    tries = seen.tries(found, folder, lambda state: _is_done(folder, f"train:{state}"))
    return Standings(folder, found.under_way(), tries, asked.cancelled(folder), groups)


def _in_queue(submission: Submission, index: int) -> tuple[str, str]:
    row = submission.live[index]
    if row.state in RUNNING:
        return "starting", f"job {submission.word(index)}"
    if row.reason.startswith("JobHeldUser") and submission.intent.held_for is not None:
        return "held", "canary: until the first run of its resources has a checkpoint"
    words = _WAITS.get(row.reason, row.reason)
    return "queued", f"job {submission.word(index)}{f', {words}' if words else ''}"


def _items(run: Mapping[str, Any]) -> list[str]:
    """Ids of a run's work, in the order in which it is done."""
    merges = [point["segment"] for point in run["points"] if point["segment"] not in (None, *run["path"])]
    ends = dict.fromkeys(point["segment"] or run["base"] for point in run["points"])
    return [
        f"base:{run['base']}",
        *(f"{'merge' if is_merged(run) else 'train'}:{state}" for state in run["path"]),
        *(f"merge:{state}" for state in merges),
        *(f"evaluate:{state}" for state in ends),
    ]


def _is_done(folder: Folder, item: str) -> bool:
    kind, _, name = item.partition(":")
    if kind == "evaluate":
        return False
    try:
        return states.read_done(folder.state(name)) is not None
    except Damaged:
        return False
