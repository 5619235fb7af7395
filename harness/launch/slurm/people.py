"""What people ask of a study's jobs: `ablate cancel` and `ablate retry`. Both only write down what is wanted and tell
Slurm; the next tick, whoever runs it, acts on it. So they need not hold the folder, and work while `--wait` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.launch.slurm import asked, breaker, classes, client, seen
from harness.launch.status import read_plan
from harness.store import states
from harness.store.layout import Folder
from harness.store.markers import Damaged
from harness.study.errors import UserError, nearest

KINDS = ("base", "train", "merge", "evaluate")


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
    """Take runs (all without any) out of Slurm. Raises UserError."""
    plan = _submitted(folder)
    chosen = _chosen(plan, runs)
    own = _items(plan, chosen) - _items(plan, [run for run in plan["runs"] if run not in chosen])
    touched = _items(plan, chosen)
    asked.write(folder, "cancel", own)
    words, kept = [], 0
    for one in seen.look(folder, client.look(folder)).live:
        if one.intent.kind == "close":
            continue
        for index in one.live:
            ids = set(one.elements[index].ids)
            if ids <= own:
                words.append(one.word(index))
            elif ids & touched:
                kept += 1
    client.cancel(words)
    return Cancelled(str(folder.root), len(chosen), len(words), kept)


def retry(folder: Folder, runs: Sequence[str], kind: str | None) -> int:
    """Forget how tries at runs (all without any) have failed, and let groups go that are held. kind: only what failed
    in that way. Returns how many items of work that is. Raises UserError."""
    plan = _submitted(folder)
    if kind is not None and kind not in classes.POLICY:
        raise UserError(
            f"`{kind}` is no class of failure; {nearest(kind, classes.POLICY)}: {', '.join(classes.POLICY)}"
        )
    wanted = _items(plan, _chosen(plan, runs))
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


def _chosen(plan: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Runs by their names, or by those of their arms; all without any."""
    arms = {arm["name"]: arm["same_as"] or arm["name"] for arm in plan["arms"]}
    found = []
    for name in names:
        own = [run for run in plan["runs"] if run["name"] == name or run["arm"] == arms.get(name)]
        if not own:
            known = [*(run["name"] for run in plan["runs"]), *arms]
            raise UserError(f"there is no run `{name}`; {nearest(name, known)}")
        found += [run for run in own if run not in found]
    return found if names else list(plan["runs"])


def _items(plan: Mapping[str, Any], runs: Collection[Mapping[str, Any]]) -> set[str]:
    """Ids of all that may be done for runs."""
    found = set()
    for run in runs:
        for state in {run["base"], *run["path"], *(point["segment"] or run["base"] for point in run["points"])}:
            found |= {f"{kind}:{state}" for kind in KINDS}
    return found
