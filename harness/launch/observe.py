"""What a results folder holds: every state, checkpoint and evaluation, whole or damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.launch.checksums import Checksums
from harness.launch.code import tree_hash
from harness.plan.canonical import digest
from harness.plan.observed import AttemptSeen, CheckpointSeen, EvaluationSeen, Observed, StateSeen
from harness.store import attempts, evaluations, plans, states
from harness.store.checkpoints import tokenizer_files
from harness.store.layout import Folder, StateFolder
from harness.store.markers import MARKER, Damaged, read_marked
from harness.store.metrics import read_steps


@dataclass(frozen=True)
class Seen:
    """What there is, and a sentence for each thing that should be whole and is not. record: see `is_record`."""

    observed: Observed
    damage: tuple[str, ...]
    record: bool = False


def is_record(folder: Folder) -> bool:
    """Whether only the record of a study lies there: its metrics and evaluations, as a repository keeps them, without
    the manifests and checkpoints that anything could be trained from."""
    states = folder.all_states()
    return bool(states) and not folder.manifests.exists() and not any(state.checkpoints.exists() for state in states)


def observe(folder: Folder) -> Seen:
    """Look through `folder`, which need not exist. Files that changed since the last look are hashed again.

    A record counts as an empty folder: none of its states can be used.
    """
    if is_record(folder):
        return Seen(Observed(code=tree_hash()), (), record=True)
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
    results = tuple(_evaluations(folder, checksums, damage))
    scored = frozenset((result.weights, result.key) for result in results)
    checksums.save()
    return Seen(Observed(seen, found, scored, plans.read_plan(folder), tree_hash(), results), tuple(damage))


def _state(state: StateFolder, checksums: Checksums) -> StateSeen | None:
    tried = _attempts(state)
    code = tried[-1].code if tried else None
    try:
        done = states.read_done(state)
        if done is None:
            begun = bool(state.attempt_numbers())
            return StateSeen("partial", reason="begun and not done", code=code) if begun else None
        files: Mapping[str, Mapping[str, Any]] = {}
        if done.checkpoint is not None:
            marker = checksums.checkpoint(state.checkpoints / done.checkpoint)
            if marker.fingerprint != state.id:
                raise Damaged(f"{marker.path} holds state {marker.fingerprint}, not {state.id}")
            files = marker.files
    except Damaged as reason:
        return StateSeen("damaged", reason=str(reason), code=code)
    return StateSeen(
        done.outcome,
        done.weights,
        "",
        code,
        done.checkpoint,
        tuple(tried),
        _tokenizer(files),
        _of_tokenizer(state),
        _disagreements(state),
    )


def _attempts(state: StateFolder) -> list[AttemptSeen]:
    """The tries that the state rests on: those that computed something and the last one, from the last that began at
    the segment's start. A base is made without any."""
    numbers = state.attempt_numbers()
    if len(numbers) > 1:
        starts = {e["attempt"]: e["tokens"] for e in attempts.read_events(state) if e["kind"] == "attempt_started"}
        anew = [number for number, tokens in starts.items() if tokens == min(starts.values())]
        numbers = [number for number in numbers if not anew or number >= max(anew)]
    found = []
    for number in numbers:
        env = attempts.read_env(state, number)
        if env is None or (number != numbers[-1] and not (state.attempt(number) / "metrics.jsonl").exists()):
            continue
        code = env.get("code")
        tree = str(code["tree"]) if isinstance(code, dict) and code.get("tree") else None
        found.append(AttemptSeen(_flat(env.get("numerics")), tree))
    return found


def _disagreements(state: StateFolder) -> tuple[int, ...]:
    """Tokens of the updates on which two attempts of one class disagree: other code or numerics give other bits."""
    numbers = state.attempt_numbers()
    if len(numbers) < 2:
        return ()
    classes: dict[str, list[int]] = {}
    for number in numbers:
        env = attempts.read_env(state, number) or {}
        code = env.get("code")
        tree = code.get("tree") if isinstance(code, dict) else None
        classes.setdefault(digest([tree, _flat(env.get("numerics"))]), []).append(number)
    return tuple(sorted(tokens for own in classes.values() for tokens in read_steps(state, own).disagreements))


def _tokenizer(files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A digest of the tokenizer's files in a checkpoint's model folder, from the marker; None where there is none."""
    own = tokenizer_files(files)
    return digest(own) if own else None


def _of_tokenizer(state: StateFolder) -> str | None:
    """The tokenizer that the state's science names."""
    try:
        base = states.read_segment(state).get("base")
    except (FileNotFoundError, Damaged):
        return None
    return str(base["tokenizer"]) if isinstance(base, dict) and base.get("tokenizer") else None


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """`{"threads": 1}` as `{"threads": "1"}`, mappings inside with their names in front."""
    flat: dict[str, str] = {}
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner if isinstance(inner, str) else json.dumps(inner)
    return flat


def _checkpoints(state: StateFolder, checksums: Checksums, damage: list[str]) -> Iterator[tuple[str, CheckpointSeen]]:
    for tokens in state.checkpoint_tokens():
        path = state.checkpoint(tokens)
        try:
            marker = checksums.checkpoint(path)
        except Damaged as reason:
            damage.append(str(reason))
            continue
        yield marker.fingerprint, CheckpointSeen(str(path.resolve()), marker.tokens, state.id)


def _evaluations(folder: Folder, checksums: Checksums, damage: list[str]) -> Iterator[EvaluationSeen]:
    if not folder.evals.is_dir():
        return
    for weights in sorted(path for path in folder.evals.iterdir() if path.is_dir()):
        for result in sorted(path for path in weights.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                marker = read_marked(result / MARKER, evaluations.SCHEMA)
                checksums.check(result, marker["files"])
                facts = read_marked(result / "results.json", evaluations.SCHEMA)
            except FileNotFoundError:
                damage.append(f"{result} has no marker: it was never finished")
            except Damaged as reason:
                damage.append(str(reason))
            else:
                yield EvaluationSeen(weights.name, result.name, str(facts.get("task", "")), _computed_with(facts))


def _computed_with(results: Mapping[str, Any]) -> dict[str, str]:
    facts = {name: results[name] for name in ("task_hash", "max_length") if name in results}
    facts |= {name: results[name] for name in ("versions", "numerics") if name in results}
    return {**_flat(results.get("settings")), **_flat(facts)}
