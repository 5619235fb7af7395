"""The tick: brings what is in Slurm to what the study needs. Run it as often as you like, from anywhere, two at once.

One look at the queue comes first and the look at the results folder after it, so that what ended in between counts as
in the queue still, never as lost. Then every item of work that is needed and not in the queue is submitted, or held
with a reason. Nothing is remembered but what lies in the results folder; a tick that is killed anywhere leaves that to
the next one. The caller holds the folder's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch.items import items_of
from harness.launch.slurm import asked, breaker, budget, canary, client, resources, seen
from harness.launch.slurm.batches import Batch, Canaries, Limits, batches
from harness.launch.slurm.chains import Chain, chains
from harness.launch.slurm.classes import End, Verdict, judge
from harness.launch.slurm.decide import Decision, Held, decide, without_parents
from harness.launch.slurm.remedies import Remedied, remedied, with_those_of_its_group
from harness.launch.slurm.resources import Resources
from harness.launch.slurm.seen import Seen, Submission
from harness.launch.slurm.submit import Refused, Submitter
from harness.launch.slurm.throttle import Share, shares
from harness.store import processes, states, submissions

if TYPE_CHECKING:
    from harness.launch.prepare import Prepared
    from harness.launch.slurm.client import Queue
    from harness.launch.work import Work


@dataclass
class Ticked:
    """What a tick found and did. live: items in the queue that were there before. running, waiting: tasks in the queue
    after it. refused: what sbatch said when it took no more. beside: what the queue does that the study does not ask
    for any more, as `Seen.beside` has it. hours: GPU-hours spent, and left; basis: of the latter."""

    submitted: list[Submission] = field(default_factory=list)
    items: int = 0
    live: int = 0
    running: int = 0
    waiting: int = 0
    held: Mapping[str, Held] = field(default_factory=dict)
    refused: str | None = None
    beside: Mapping[str, bool] = field(default_factory=dict)
    hours: tuple[float, float] = (0.0, 0.0)
    basis: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "submitted": [
                {"number": one.number, "job": one.job, "tasks": sum(bool(element.items) for element in one.elements)}
                for one in self.submitted
            ],
            "items_submitted": self.items,
            "items_live": self.live,
            "held": {item: {"kind": held.kind, "reason": held.reason} for item, held in self.held.items()},
            "refused": self.refused,
            "not_asked_for": list(self.beside),
            "gpu_hours": {"spent": self.hours[0], "left": self.hours[1], "basis": self.basis},
        }

    @property
    def quiet(self) -> bool:
        """Whether nothing is in the queue and nothing more can be submitted."""
        return not self.live and not self.submitted


@dataclass
class Tick:
    """One tick. queue: looked at before the folder was. items: what the plan needs, parents first. yes: the budget does
    not count. train: whether `items` are all that is needed, or its evaluations alone."""

    prepared: Prepared
    queue: Queue
    items: list[Work]
    settings: Mapping[str, Any]
    snapshot: Path
    perform: str
    yes: bool = False
    train: bool = True

    def __post_init__(self) -> None:
        spec = self.prepared.study.spec
        self.folder = self.prepared.folder
        self.resources = Resources(spec.launch, self.prepared.plan)
        self.seen: Seen = seen.observe(self.folder, self.queue)
        self.submitter = Submitter(
            self.folder, spec.study, self.snapshot, spec.launch.threads, self.settings, self.perform
        )
        self.given: dict[str, Remedied] = {}
        self.ticked = Ticked()
        self._how: list[tuple[Batch, Share, Mapping[Batch, Submission], list[str]]] = []  # of what was submitted

    def run(self) -> Ticked:
        """Observe, cancel what can never start, let go what may, submit what is ready. Raises Refused, Unreachable."""
        self._let_go()
        decision = self._decide()
        self._budget(decision)
        under_way = self.seen.under_way()
        self.ticked.live = len(under_way)
        self.ticked.beside = self._beside()
        self.ticked.held = decision.held
        problem: Refused | None = None
        if decision.ready:
            try:
                self._submit(decision)
            except Refused as error:
                problem = error
        self._close()
        self._count()
        if problem is not None and (self.ticked.quiet or not problem.limit):
            raise self._with_what_went_through(problem)
        return self.ticked

    def _with_what_went_through(self, problem: Refused) -> Refused:
        """A refusal that also says what Slurm had taken before it."""
        jobs = ", ".join(str(one.job) for one in self.ticked.submitted)
        said = (
            f" What was submitted before it stays in the queue (job {jobs}); the next call adds the rest."
            if jobs
            else ""
        )
        return Refused(f"{str(problem).rstrip('.')}.{said}", problem.limit)

    def _beside(self) -> dict[str, bool]:
        """What the queue does that the study does not ask for any more."""
        needed = {item.id for item in self.items}
        if self.seen.under_way().keys() <= needed:
            return {}
        plan = self.prepared.plan  # with what is done: the job that has done it may be on its way out
        return self.seen.beside(needed, seen.items_of(plan.run_json(run) for run in plan.runs))

    def _count(self) -> None:
        rows = [row for one in self.seen.live if one.intent.kind == "work" for row in one.live.values()]
        self.ticked.running = sum(row.state in ("RUNNING", "COMPLETING") for row in rows)
        new = sum(bool(element.items) for one in self.ticked.submitted for element in one.elements)
        self.ticked.waiting = len(rows) - self.ticked.running + new

    # What is in the queue already

    def _let_go(self) -> None:
        """Cancel tasks that wait for what will not come; release those whose canary has passed."""
        dead = [
            (one, index)
            for one in self.seen.live
            for index, row in one.live.items()
            if row.reason == client.NEVER and one.intent.kind == "work"
        ]
        _, waiting = self._canaries()
        for one in self.seen.live:
            if one.intent.held_for is None or one.intent.group in waiting:
                continue
            if self._passed(one.intent.held_for):
                client.release([str(one.job)])
            else:
                dead += [(one, index) for index in one.live if (one, index) not in dead]
        if dead:
            client.cancel([one.word(index) for one, index in dead])
            for one, index in dead:
                del one.live[index]

    def _passed(self, number: int) -> bool:
        return canary.passed(self.folder, self.folder.submission(number))

    def _canaries(self) -> tuple[set[str], Mapping[str, int]]:
        return seen.canaries(self.seen, lambda submission: canary.passed(self.folder, submission))

    # What is to be done

    def _decide(self) -> Decision:
        there = {
            name
            for name, state in self.prepared.seen.observed.states.items()
            if state.outcome in ("trained", "diverged")
        }
        tries = seen.tries(self.seen, self.folder, lambda state: state in there)
        decision = decide(
            self.items,
            self.seen.under_way(),
            tries,
            lambda item: states.newest_checkpoint(self.folder.state(item.state)),
            asked.cancelled(self.folder),
            lambda item: breaker.reason(self.folder, self.resources.group(item)),
        )
        learnt = self._learnt(tries)
        for item in decision.ready:
            group = learnt[self.resources.group(item)]
            if group.hold is not None:
                breaker.hold(self.folder, self.resources.group(item), group.hold)
                decision.hold(item, Held("group", group.hold))
                continue
            given = remedied(
                item,
                with_those_of_its_group(item, decision.verdicts[item.id], group),
                self.resources.of(item),
                self.settings["micro_batch"],
                self.prepared.plan,
            )
            if isinstance(given, Held):
                decision.hold(item, given)
            else:
                self.given[item.id] = given
        decision.ready = [item for item in decision.ready if item.id not in decision.held]
        without_parents(decision, self.items)
        return decision

    def _learnt(self, tries: Mapping[str, list[End]]) -> dict[str, Verdict]:
        """What has become known of the memory that each group of resources has; hold: that it does not suffice, with
        the remedy either, and nothing has run on it yet."""
        found: dict[str, Verdict] = {}
        passed, _ = self._canaries()
        for item in self.items:
            own = judge(tries.get(item.id, ()), None)
            group = self.resources.group(item)
            before = found.get(group, Verdict())
            short = own.hold is not None and own.kind in ("oom_gpu", "oom_host") and group not in passed
            found[group] = Verdict(
                hold=f"{item.name} had too little memory with these resources" if short else before.hold,
                halvings=max(before.halvings, min(1, own.halvings) if item.kind == "train" else 0),
                memory=max(before.memory, min(1, own.memory)),
            )
        return found

    def _budget(self, decision: Decision) -> None:
        """Hold what the budget does not reach, and end what runs when it is used up."""
        plan, limit = self.prepared.plan, self.prepared.study.spec.budget.gpu_hours
        speed = budget.speed(plan, self.folder)
        spent = budget.spent(self.seen)
        under_way = self.seen.under_way()
        live = sum(budget.of_item(item, plan, speed) for item in self.items if item.id in under_way)
        ready = sum(budget.of_item(item, plan, speed) for item in decision.ready)
        self.ticked.hours, self.ticked.basis = (spent, live + ready), speed.basis
        if limit is None or self.yes:
            return
        reason = f"budget.gpu_hours: {limit:g}, of which {spent:.3g} are used; {{}} ({speed.basis})"
        if spent >= limit and under_way:
            words = [one.word(index) for one in self.seen.live if one.intent.kind == "work" for index in one.live]
            asked.write(self.folder, "budget", set(under_way))
            client.cancel(words)
        sofar = spent + live
        for item in decision.ready:
            cost = budget.of_item(item, plan, speed)
            if spent >= limit or (item.kind == "train" and sofar + cost > limit):
                decision.hold(item, Held("budget", reason.format(f"this takes about {cost:.3g} more")))
            else:
                sofar += cost
        decision.ready = [item for item in decision.ready if item.id not in decision.held]
        without_parents(decision, self.items)

    # Submitting

    def _submit(self, decision: Decision) -> None:
        keys = {name: _key(given) for name, given in self.given.items()}
        under_way = self.seen.under_way()
        makers = {item.makes: item.id for item in self.items if item.makes is not None and item.id in under_way}
        passed, waiting = self._canaries()
        groups: dict[str, str] = {}
        proven: set[str] = set()
        for item in decision.ready:
            key, plain = keys[item.id], self.resources.of(item)
            groups[key] = self.resources.group(item)
            short = bool(self.given[item.id].remedy)  # of memory, and nobody knows whether it suffices now
            if groups[key] in passed or (key != _key(Remedied(plain)) and not short):
                proven.add(key)

        def jobs_of(chain: Chain) -> list[str]:
            found = [under_way[makers[state]] for state in chain.awaits if state in makers]
            return list(dict.fromkeys(submission.word(index) for submission, index in found))

        found = batches(
            chains(decision.ready, lambda item: keys[item.id], makers),
            Limits(client.max_array_size()),
            Canaries(proven, {key: waiting[group] for key, group in groups.items() if group in waiting}),
            jobs_of,
        )
        self._call(found)

    def _call(self, found: list[Batch]) -> None:
        """Call sbatch for each batch, as far as Slurm takes them."""
        free, after_live = self._free()
        placed: dict[Batch, Submission] = {}
        for batch, share in shares(found, free).items():
            try:
                placed[batch] = self._work(batch, share, placed, after_live)
            except Refused as error:
                if error.limit:
                    self.ticked.refused = str(error)
                    self._part(batch, share, placed, after_live)
                raise

    def _part(self, batch: Batch, share: Share, placed: Mapping[Batch, Submission], also: list[str]) -> None:
        """Submit as much of a batch as Slurm still takes: a half, a quarter and so on."""
        some = len(batch.tasks) // 2
        while some:
            part = replace(batch, tasks=dict(list(batch.tasks.items())[:some]))
            try:
                self._work(part, share, placed, also)
                return
            except Refused as error:
                if not error.limit:
                    raise
            some //= 2

    def _work(self, batch: Batch, share: Share, placed: Mapping[Batch, Submission], also: list[str]) -> Submission:
        first = next(iter(batch.tasks.values())).items[0]
        given = self.given[first.id]
        behind = [str(placed[share.behind].job)] if share.behind is not None else []
        made = self.submitter.work(
            batch,
            given,
            self.resources.group(first),
            placed,
            share.cap,
            [*behind, *also],
        )
        self.ticked.submitted.append(made)
        self._how.append((batch, share, placed, also))
        self.ticked.items += sum(len(chain.items) for chain in batch.tasks.values())
        return made

    def _free(self) -> tuple[int | None, list[str]]:
        """How many tasks may run beside those in the queue, and what new ones must wait for when that is none."""
        parallel = self.prepared.study.spec.launch.parallel
        if parallel is None:
            return None, []
        work = [one for one in self.seen.live if one.intent.kind == "work"]
        taken = sum(min(one.intent.cap or len(one.live), len(one.live)) for one in work)
        if taken < parallel:
            return parallel - taken, []
        return parallel, [str(one.job) for one in work]

    def _close(self) -> None:
        """See to it that the last job of all runs the tick again and writes the report.

        One that runs already waits for the lock that this tick holds, and has nothing to do once there is another.
        """
        own = processes.identity().get("slurm", {}).get("job")
        live = [one for one in self.seen.live if one.intent.kind == "work"] + self.ticked.submitted
        waiting = [one for one in self.seen.live if one.intent.kind == "close" and one.job != own]
        if not live or (waiting and not self.ticked.submitted):
            return
        # Not for jobs that are held: their canary may die without a word, and then nobody would ever let them go.
        free = [one for one in live if one.intent.held_for is None or self._passed(one.intent.held_for)]
        words = list(dict.fromkeys(str(one.job) for one in free))
        try:
            self.submitter.close(self.resources.close(), words, self.train or _train(live, waiting))
        except Refused as error:
            if not error.limit or not self._make_room():
                raise
            self._close()
            return
        client.cancel([str(one.job) for one in waiting])

    def _make_room(self) -> bool:
        """Take back half of the newest submission, so that the job that goes on has a place in the queue."""
        if not self.ticked.submitted:
            return False
        last, (batch, share, placed, also) = self.ticked.submitted.pop(), self._how.pop()
        submissions.write_void(last.folder, "taken back: the queue was full")
        client.cancel([str(last.job)])
        self.ticked.items -= sum(len(chain.items) for chain in batch.tasks.values())
        self._part(batch, share, placed, also)
        return bool(self.ticked.submitted or self.seen.live)


def _train(work: Sequence[Submission], closing: Sequence[Submission]) -> bool:
    """Whether any of these jobs is to train: `ablate eval` beside them does not end that."""
    kinds = {item["kind"] for one in work for element in one.elements for item in element.items}
    return bool(kinds - {"evaluate"}) or any(one.intent.settings.get("train", True) for one in closing)


def _key(given: Remedied) -> str:
    return resources.group_of({"parameters": given.parameters, "remedy": given.remedy})


def items(prepared: Prepared, train: bool) -> list[Work]:
    """What the plan needs, parents first."""
    observed = prepared.seen.observed.states
    diverged = {name for name, state in observed.items() if state.outcome == "diverged"}
    found = items_of(prepared.plan, prepared.tasks, diverged, train)
    there = {name for name, state in observed.items() if state.outcome == "trained"}
    return found if train else [item for item in found if item.state in there]
