"""`ablate verify`: is all in a results folder what it was, and does a run trained alone give the same weights?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.token_store import is_complete, recorded_files
from harness.launch import code, prepare
from harness.launch.executor import Executor, Job
from harness.launch.local import LocalExecutor
from harness.launch.logs import states_of
from harness.launch.progress import Shown, Silent, listener_for
from harness.launch.queue import Queue
from harness.launch.resolve import known, lacks_origin, resolve
from harness.launch.status import read_plan
from harness.launch.stop import Stop
from harness.launch.work import Work
from harness.plan.canonical import digest
from harness.store import attempts, checkpoints, evaluations, manifests, models, states
from harness.store.layout import Folder
from harness.store.markers import MARKER, Damaged, read_marked, verify_files
from harness.store.places import remembered
from harness.store.runs import states_behind
from harness.study.errors import UserError


def damage(folder: Folder) -> tuple[int, list[str]]:
    """Hash every file that a marker speaks for, or the description of a token store. How many of both were checked,
    and a sentence for each damage."""
    read_plan(folder)
    checked = 0
    found: list[str] = []
    for state in folder.all_states():
        for check in (lambda state=state: states.verify_state(state), *_checkpoint_checks(state)):
            checked += 1
            try:
                check()
            except Damaged as reason:
                if str(reason) not in found:
                    found.append(str(reason))
    for manifest in filter(None, (manifests.read_source(folder, path.stem) for path in _source_manifests(folder))):
        store = Path(manifest["tokens"])
        if is_complete(store):  # (one that is not there is built again when it is needed)
            checked += 1
            try:
                verify_files(store, recorded_files(store))
            except Damaged as reason:
                found.append(str(reason))
    outside, unreadable = models.read_models(folder)
    checked += len(outside) + len(unreadable)
    found += unreadable
    for marker in sorted(folder.evals.glob(f"*/*/{MARKER}")):
        checked += 1
        try:
            verify_files(marker.parent, read_marked(marker, evaluations.SCHEMA)["files"])
        except Damaged as reason:
            found.append(str(reason))
    return checked, found


def _source_manifests(folder: Folder) -> list[Path]:
    return sorted((folder.manifests / "sources").glob("*.json"))


def _checkpoint_checks(state: Any) -> list[Any]:
    return [lambda tokens=tokens: checkpoints.verify(state.checkpoint(tokens)) for tokens in state.checkpoint_tokens()]


@dataclass(frozen=True)
class Point:
    """A state of the run: its weights in the results folder and when the run was trained alone."""

    label: str
    tokens: int
    there: str | None
    alone: str | None

    @property
    def equal(self) -> bool:
        return self.there is not None and self.there == self.alone


def retrain(
    folder: Folder, run: str, scratch: Path, executor: Executor, settings: Mapping[str, Any], listener: Silent
) -> list[Point]:
    """Train one run alone in `scratch`, its path uncut but for its points, and compare the weights at each.

    settings: the numerics to train with; equal weights can only be expected at equal numerics.
    """
    planned = next((item for item in read_plan(folder)["runs"] if item["name"] == run), None)
    if planned is None:
        states_of(folder, run)  # raises, with the nearest name
        raise AssertionError("unreachable")
    alone = Folder(scratch)
    shutil.copytree(folder.manifests, alone.manifests, dirs_exist_ok=True)
    items = _copied(folder, alone, planned)
    queue = Queue(items)
    with Stop() as stop, Shown(listener, items):
        executor.run(Job(alone, queue, settings), listener, stop)
    failed = [result.failure for result in queue.results.values() if result.failure is not None]
    if stop.signal is not None:
        raise KeyboardInterrupt
    if failed:
        raise UserError(f"{run} could not be trained again: {failed[0]}")
    return [
        Point(
            point["label"],
            point["tokens"],
            _weights(folder, point["segment"] or planned["base"]),
            _weights(alone, _alias(planned, point)),
        )
        for point in planned["points"]
    ]


def _copied(folder: Folder, alone: Folder, run: Mapping[str, Any]) -> list[Work]:
    """The run's base and segments under names of their own, so that nothing of the results is taken for theirs."""
    items: list[Work] = []
    renamed: dict[str, str] = {}
    merges = [point["segment"] for point in run["points"] if point["segment"] not in (None, *run["path"])]
    for name in _behind(folder, [run["base"], *run["path"], *merges]):
        try:
            segment = states.read_segment(folder.state(name))
        except (FileNotFoundError, Damaged):
            raise UserError(f"{run['name']} is not whole in {folder.root}; bring it there with `ablate run`.") from None
        renamed[name] = name if segment["kind"] == "base" else digest([name, run["name"]])
        own = renamed[name]
        parent = segment["parent"] and renamed[segment["parent"]]
        own_fields = {"id": own, "parent": parent}
        also: tuple[str, ...] = ()
        if "recipe" in segment:
            parts = [renamed[of] for of in segment["recipe"]["of"]]
            own_fields["recipe"] = {**segment["recipe"], "of": parts}
            parent, *others = dict.fromkeys(parts)
            also = tuple(others)
        states.write_segment(alone.state(own), {**segment, **own_fields})
        kind: Any = segment["kind"]
        tokens = int(segment["tokens_to"]) - int(segment["tokens_from"])
        items.append(Work(kind, own, parent, tokens, f"{segment['stage']} of {run['name']}", {"start": []}, also))
    return items


def _behind(folder: Folder, names: Sequence[str]) -> list[str]:
    """States and all that they start from or are merged of, parents first."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        if name in found:
            return
        try:
            segment = states.read_segment(folder.state(name))
        except (FileNotFoundError, Damaged):
            segment = {}  # said by whoever reads it
        for before in (segment.get("parent"), *(segment.get("recipe") or {}).get("of", ())):
            if before:
                add(str(before))
        found[name] = None

    for name in names:
        add(name)
    return list(found)


def _alias(run: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    return str(run["base"]) if point["segment"] is None else digest([point["segment"], run["name"]])


def _weights(folder: Folder, state: str) -> str | None:
    try:
        done = states.read_done(folder.state(state))
    except Damaged:
        return None
    return None if done is None else done.weights


def numerics_of(folder: Folder, run: str) -> dict[str, Any]:
    """The numerics of the newest attempt at training the run, of a merged run its parts, as settings of an order.

    A merge is made with no kernels at all, so its record says nothing of them. Raises UserError when it never ran, and
    where several processes have trained it together.
    """
    states_of(folder, run)  # raises, with the nearest name
    plan = read_plan(folder)
    planned = next(one for one in plan["runs"] if one["name"] == run)
    trained = {segment["id"] for segment in plan["segments"] if segment["kind"] == "train"}
    names = [name for name in reversed([*states_behind(plan, planned), *planned["path"]]) if name in trained]
    for name in names:
        _check_world(folder, run, name)
    for name in names:
        state = folder.state(name)
        for number in reversed(state.attempt_numbers()):
            env = attempts.read_env(state, number)
            if env is not None and "numerics" in env:
                recorded = env["numerics"]
                return {
                    "device": recorded["device"],
                    "threads": recorded["threads"],
                    "micro_batch": recorded["micro_batch"],
                    "kernels": _kernels(recorded["kernels"]),
                    "compile": recorded.get("compile", False),
                    "activation_checkpointing": recorded.get("activation_checkpointing", "off"),
                    "checkpoint_every": None,
                    "keep": "last",
                    "code": code.provenance(),
                }
    raise UserError(f"{run} was never trained in {folder.root}, so there is nothing to compare with.")


def _check_world(folder: Folder, run: str, segment: str) -> None:
    """Raise UserError where an attempt at a segment was several processes: one alone adds a batch up in another order,
    so its weights would agree to rounding alone, and nothing be said of the run."""
    state = folder.state(segment)
    for number in state.attempt_numbers():
        recorded = (attempts.read_env(state, number) or {}).get("numerics") or {}
        world = int(recorded.get("world") or 1)
        if world > 1:
            raise UserError(
                f"{run} was trained by {world} processes together ({recorded.get('strategy', 'ddp')}; state "
                f"{segment[:12]}), and is trained again by one here, which sums a batch in another order: the weights "
                f"would agree to rounding, not to the bit, and prove nothing. `ablate verify {folder.root}` checks the "
                "files; runs that one process has trained can be trained again."
            )


def _kernels(recorded: str) -> str | dict[str, str]:
    """`launch.kernels` that gives what an attempt recorded: a word, or each part that was not torch's."""
    if " " not in recorded:
        return recorded
    return dict(part.split(" ") for part in recorded.split(", "))  # type: ignore[misc]


def alone(folder: Folder, run: str, quiet: bool) -> list[Point]:
    """`retrain` with worker processes, in a scratch folder that is removed, at the numerics that the run had."""
    settings = numerics_of(folder, run)
    bring_origin(folder, listener_for(quiet).note)
    with tempfile.TemporaryDirectory(prefix="ablate-verify-") as scratch:
        executor = LocalExecutor(1, settings["threads"])
        return retrain(folder, run, Path(scratch), executor, settings, listener_for(quiet))


def bring_origin(folder: Folder, note: Callable[[str], None]) -> None:
    """Make the token stores of a folder that was copied here, where its study file is still found."""
    asked = read_plan(folder).get("asked") or {}
    path = remembered(folder.root, str(asked.get("file", "")))
    if path.is_file():
        study = prepare.load(path, asked["set"])
        if lacks_origin(known(study, folder)):
            resolve(study, folder, note)


def points_json(run: str, points: Sequence[Point]) -> dict[str, Any]:
    return {"run": run, "equal": all(point.equal for point in points), "points": [asdict(point) for point in points]}


def lines(points: Sequence[Point]) -> list[str]:
    """A line per point."""
    said = []
    for point in points:
        verdict = "equal" if point.equal else ("not there" if point.there is None else "DIFFERENT")
        shown = (point.there or "-")[:16]
        said.append(f"{point.label} ({point.tokens:,} tokens): {verdict}, {shown}, alone {(point.alone or '-')[:16]}")
    return said
