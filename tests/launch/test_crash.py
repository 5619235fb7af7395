"""With the real trainer: a run that was killed and run again ends at the weights of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.launch import prepare, verify
from harness.launch.executor import DebugExecutor
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from harness.launch.worker import PERFORM, load_perform
from harness.store import attempts, states
from harness.store.atomic import read_json
from harness.store.layout import Folder

# A trunk ten checkpoints long: a worker outlives a killed controller for a moment, which must not suffice to finish it.
TRUNK, EVERY = 128_000, 12_800


def final_weights(folder: Folder) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for planned in read_json(folder.plan_json)["runs"]:
        done = states.read_done(folder.state(planned["path"][-1]))
        found[planned["name"]] = None if done is None else done.weights
    return found


@pytest.mark.slow  # tests/proofs has the quick one, which kills controller and workers at once
def test_killed_twice_and_shared_or_not_the_final_weights_are_the_same(unscored: Path) -> None:
    text = unscored.read_text().replace("data: [1, 2]", "data: [1]")
    text = text.replace("tokens: 12800,", f"tokens: {TRUNK},")
    unscored.write_text(text.replace("checkpoint_every: 2560", f"checkpoint_every: {EVERY}"))
    alone = run(Options(unscored, unscored.parent / "alone", executor="debug", share=False), Silent())
    assert alone.ended.exit_code == 0

    root = unscored.parent / "killed"
    prepare.resolved_plan(prepare.load(unscored), Folder(root), True, print)  # so that the processes below need not
    for number in (signal.SIGKILL, signal.SIGTERM):
        kill_inside_a_segment(unscored, root, number)
    finished = run(Options(unscored, root, executor="debug"), Silent())
    assert finished.ended.exit_code == 0

    assert resumed_inside(finished.folder) >= 2
    weights = final_weights(finished.folder)
    assert len(set(weights.values())) == len(weights) == 3 and None not in weights.values()
    assert weights == final_weights(alone.folder)
    assert verify.damage(finished.folder)[1] == []

    numerics = verify.numerics_of(finished.folder, "more=0/d1")
    executor = DebugExecutor(load_perform(PERFORM))
    points = verify.retrain(finished.folder, "more=0/d1", root / "scratch", executor, numerics, Silent())
    assert [(point.label, point.equal) for point in points] == [
        *(("base", True), ("stable", True), ("decay", True), ("end", True))
    ]


def resumed_inside(folder: Folder) -> int:
    """How many later attempts took their segment up after its beginning; there must be no other ones."""
    count = 0
    for state in folder.all_states():
        for event in attempts.read_events(state):
            if event["kind"] == "attempt_started" and event["attempt"] > 0:
                assert event["tokens"] > states.read_segment(state)["tokens_from"]
                count += 1
    return count


def kill_inside_a_segment(study: Path, root: Path, number: int) -> None:
    """Start `ablate run` and send it `number` once a state has gained a checkpoint that it had not."""
    before = checkpoints(root)
    command = [sys.executable, "-m", "harness.cli", "run", str(study), "-o", str(root), "--jobs", "1"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not any(tokens > 0 for _, tokens in checkpoints(root) - before):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=60) == (-number if number == signal.SIGKILL else 128 + number)
    while any(attempts.living_attempt(state) for state in Folder(root).all_states()):
        time.sleep(0.05)  # the worker of a killed controller writes its checkpoint and leaves


def checkpoints(root: Path) -> set[tuple[str, int]]:
    return {(state.id, tokens) for state in Folder(root).all_states() for tokens in state.checkpoint_tokens()}
