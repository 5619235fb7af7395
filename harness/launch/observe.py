"""What a results folder holds: every state, checkpoint and evaluation, whole or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.launch.checksums import Checksums
from harness.launch.code import tree_hash
from harness.plan.observed import CheckpointSeen, Observed, StateSeen
from harness.store import attempts, evaluations, states
from harness.store.atomic import read_json
from harness.store.layout import Folder, StateFolder
from harness.store.markers import MARKER, Damaged, read_marked


@dataclass(frozen=True)
class Seen:
    """What there is, and a sentence for each thing that should be whole and is not."""

    observed: Observed
    damage: tuple[str, ...]


def observe(folder: Folder) -> Seen:
    """Look through `folder`, which need not exist. Files that changed since the last look are hashed again."""
    checksums = Checksums(folder.root)
    damage: list[str] = []
    seen: dict[str, StateSeen] = {}
    found: dict[str, CheckpointSeen] = {}
    for state in folder.all_states():
        found.update(_checkpoints(state, checksums, damage))
        one = _state(state, checksums)
        if one is not None:
            seen[state.id] = one
            if one.outcome == "damaged" and one.reason not in damage:
                damage.append(one.reason)
    scored = frozenset(_evaluations(folder, checksums, damage))
    checksums.save()
    return Seen(Observed(seen, found, scored, _previous(folder), tree_hash()), tuple(damage))


def _state(state: StateFolder, checksums: Checksums) -> StateSeen | None:
    try:
        done = states.read_done(state)
        if done is None:
            begun = bool(state.attempt_numbers())
            return StateSeen("partial", reason="begun and not done") if begun else None
        if done.checkpoint is not None:
            marker = checksums.checkpoint(state.checkpoints / done.checkpoint)
            if marker.fingerprint != state.id:
                raise Damaged(f"{marker.path} holds state {marker.fingerprint}, not {state.id}")
    except Damaged as reason:
        return StateSeen("damaged", reason=str(reason))
    return StateSeen(done.outcome, done.weights, "", _code(state), done.checkpoint)


def _code(state: StateFolder) -> str | None:
    """The tree hash of the code of the state's last attempt; a base is made without one."""
    numbers = state.attempt_numbers()
    env = attempts.read_env(state, numbers[-1]) if numbers else None
    code = (env or {}).get("code")
    return str(code["tree"]) if isinstance(code, dict) and code.get("tree") else None


def _checkpoints(state: StateFolder, checksums: Checksums, damage: list[str]) -> Iterator[tuple[str, CheckpointSeen]]:
    for tokens in state.checkpoint_tokens():
        path = state.checkpoint(tokens)
        try:
            marker = checksums.checkpoint(path)
        except Damaged as reason:
            damage.append(str(reason))
            continue
        yield marker.fingerprint, CheckpointSeen(str(path.resolve()), marker.tokens)


def _evaluations(folder: Folder, checksums: Checksums, damage: list[str]) -> Iterator[tuple[str, str]]:
    if not folder.evals.is_dir():
        return
    for weights in sorted(path for path in folder.evals.iterdir() if path.is_dir()):
        for result in sorted(path for path in weights.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                marker = read_marked(result / MARKER, evaluations.SCHEMA)
                checksums.check(result, marker["files"])
            except FileNotFoundError:
                damage.append(f"{result} has no marker: it was never finished")
            except Damaged as reason:
                damage.append(str(reason))
            else:
                yield weights.name, result.name


def _previous(folder: Folder) -> dict[str, object] | None:
    try:
        value = read_json(folder.plan_json)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
