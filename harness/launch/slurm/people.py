"""What people ask of a study's jobs: `ablate cancel` and `ablate retry`. Both only write down what is wanted and tell
Slurm; the next tick, whoever runs it, acts on it. So they need not hold the folder, and work while `--wait` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.launch.slurm import asked, breaker, classes, client, seen
from harness.launch.slurm.seen import items_of
from harness.launch.status import orphans, read_plan
from harness.store import states
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.study.errors import UserError, nearest


@dataclass(frozen=True)
class Cancelled:
    """runs: those that were asked for. tasks: that were in the queue. kept: tasks that other runs need as well."""

    folder: str
    runs: int
    tasks: int
    kept: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        kept = f"; {self.kept} go on, because other runs need them, too" if self.kept else ""
        return (
            f"cancelled {self.tasks} jobs of {self.runs} runs{kept}. They stay so, and what waits for them, until "
            f"`ablate retry {self.folder}`."
        )


def cancel(folder: Folder, runs: Sequence[str]) -> Cancelled:
    """Take runs out of Slurm; without any, all jobs, also those of what the study does not ask for any more. Raises
    UserError, having asked for nothing, when Slurm does not answer."""
    plan = _submitted(folder)
    chosen = _chosen(folder, plan, runs)
    touched = items_of(chosen)
    own = touched - items_of([run for run in plan["runs"] if run not in chosen])
    live = [one for one in seen.look(folder, client.look(folder)).live if one.intent.kind == "work"]
    if not runs:
        touched = own = own.union(*(one.elements[index].ids for one in live for index in one.live))
    asked.write(folder, "cancel", own)
    tasks = [(one.word(index), set(one.elements[index].ids)) for one in live for index in one.live]
    words = [word for word, ids in tasks if ids <= own]
    client.cancel(words)
    kept = sum(bool(ids & touched) for _, ids in tasks if not ids <= own)
    return Cancelled(str(folder.root), len(chosen), len(words), kept)


def retry(folder: Folder, runs: Sequence[str], kind: str | None) -> int:
    """Forget how tries at runs (all without any) have failed, and let groups go that are held. kind: only what failed
    in that way. Returns how many items of work that is. Raises UserError."""
    plan = _submitted(folder)
    if kind is not None and kind not in classes.POLICY:
        raise UserError(
            f"`{kind}` is no class of failure; {nearest(kind, classes.POLICY)}: {', '.join(classes.POLICY)}"
        )
    wanted = items_of(_chosen(folder, plan, runs))
    if kind is not None:
        wanted &= _failed(folder, kind)
    asked.write(folder, "retry", wanted)
    breaker.let_go(folder)
    return len(wanted)


def _failed(folder: Folder, kind: str) -> set[str]:
    """Items whose last try ended in a way, or that were cancelled."""

    def there(state: str) -> bool:
        try:
            return states.read_done(folder.state(state)) is not None
        except Damaged:
            return False

    tries = seen.tries(seen.look(folder, client.look(folder)), folder, there)
    found = {item for item, ends in tries.items() if ends[-1].kind == kind}
    return found | (asked.cancelled(folder) if kind == "cancelled" else set())


def _submitted(folder: Folder) -> Mapping[str, Any]:
    plan = read_plan(folder)
    if not folder.all_submissions():
        raise UserError(
            f"nothing of {folder.root} was submitted to Slurm. A run on this machine is stopped with Ctrl-C, and "
            "`ablate run` tries again what failed."
        )
    return plan


def _chosen(folder: Folder, plan: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Runs by their names, or by those of their arms; all of the study without any. What the study had once can be
    named, too."""
    arms = {arm["name"]: arm["same_as"] or arm["name"] for arm in plan["arms"]}
    there: list[Mapping[str, Any]] = [*plan["runs"], *(orphans(folder, plan) if names else ())]
    found: list[Mapping[str, Any]] = []
    for name in names:
        own = [run for run in there if run["name"] == name or run["arm"] == arms.get(name, name)]
        if not own:
            known = [*(run["name"] for run in there), *arms]
            raise UserError(f"there is no run `{name}`; {nearest(name, known)}")
        found += [run for run in own if run not in found]
    return found if names else list(plan["runs"])
