"""Everything at once: a study is finished, once and exactly, however often its cluster fails under it.

Seven kinds of faults, each five times, at moments that a seed decides; nearly all of them hit a run that trains and has
a checkpoint. What each hit is printed at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.launch import run
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.launch.slurm import people
from harness.store import attempts, states
from harness.store.atomic import read_json
from harness.store.layout import Folder, StateFolder
from harness.study.errors import UserError
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.real import SLOW, newest, pace, weights, write_real
from tests.slurm.studies import in_queue, submit, words
from tests.slurm.test_ticks import in_a_fork

SEED, TIMES = 20261124, 5
PACE = 0.2
STABLE, DECAY, EVERY = 25_600, 102_400, 2560  # 100 and 400 updates, ten between two checkpoints
LONGEST = 900.0  # seconds of faults


@dataclass
class Hit:
    """A fault: kind, and the state that it was meant for. after: that it had a checkpoint and was in training."""

    kind: str
    state: str
    after: bool


@dataclass
class Chaos:
    """Faults on the cluster while a study runs."""

    cluster: Cluster
    folder: Folder
    study: Path
    random: random.Random = field(default_factory=lambda: random.Random(SEED))
    hits: list[Hit] = field(default_factory=list)
    dead: dict[str, float] = field(default_factory=dict)  # nodes, and when they come back

    def target(self) -> tuple[StateFolder, dict[str, Any], bool] | None:
        """A state in training with its process, one with a checkpoint of its own if there is any."""
        found = []
        for state in self.folder.all_states():
            env = attempts.living_attempt(state)
            if env is None or "slurm" not in env or states.read_done(state) is not None:
                continue
            begun = newest(state) > states.read_segment(state)["tokens_from"]
            found.append((begun, state, env))
        good = [one for one in found if one[0]] or found
        if not good:
            return None
        begun, state, env = self.random.choice(good)
        return state, env, begun

    def strike(self, kind: str) -> bool:
        """One fault. Whether there was anything to hit."""
        target = self.target()
        if target is None or not target[2]:
            return False
        state, env, begun = target
        with contextlib.suppress(RuntimeError, ProcessLookupError):  # it ended in this very moment
            if FAULTS[kind](self, env) is False:
                return False
            self.hits.append(Hit(kind, state.id[:8], begun))
            return True
        return False

    def revive(self) -> None:
        for node, when in list(self.dead.items()):
            if time.monotonic() > when:
                self.cluster.start_node(node)
                del self.dead[node]

    def tick(self) -> None:
        with contextlib.suppress(UserError):  # another tick is at work, or the disk is full
            submit(self.study, perform=SLOW)

    def again(self, kind: str | None) -> None:
        with contextlib.suppress(UserError):
            people.retry(self.folder, [], kind)
        self.tick()


def node(chaos: Chaos, env: dict[str, Any]) -> bool:
    """`kill -9` of a slurmd, which comes back at once or after Slurm has missed it."""
    name = env["slurm"]["node"]
    assert name in NODES
    if name in chaos.dead or len(chaos.dead) == 2:
        return False
    chaos.cluster.kill_node(name)
    chaos.dead[name] = time.monotonic() + chaos.random.choice([2, 40])
    return True


def child(chaos: Chaos, env: dict[str, Any]) -> None:
    os.kill(int(env["pid"]), signal.SIGKILL)


def requeue(chaos: Chaos, env: dict[str, Any]) -> None:
    chaos.cluster.command("scontrol", "requeue", str(env["slurm"]["job"]))


def preempt(chaos: Chaos, env: dict[str, Any]) -> None:
    where = ["-w", str(env["slurm"]["node"])] if env["slurm"]["node"] not in chaos.dead else []
    chaos.cluster.command("sbatch", "-p", "high", *where, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")


def scancel(chaos: Chaos, env: dict[str, Any]) -> None:
    chaos.cluster.command("scancel", str(env["slurm"]["job"]))
    time.sleep(5)
    chaos.again("cancelled")


def disk(chaos: Chaos, env: dict[str, Any]) -> None:
    ballast = chaos.folder.root / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()
    time.sleep(4)  # longer than it takes to the next checkpoint
    ballast.unlink()
    chaos.again("disk")


def ticks(chaos: Chaos, env: dict[str, Any]) -> None:
    for pid in [in_a_fork(lambda: submit(chaos.study, perform=SLOW)) for _ in range(2)]:
        os.waitpid(pid, 0)


FAULTS: dict[str, Callable[[Chaos, dict[str, Any]], bool | None]] = {
    fault.__name__: fault for fault in (node, child, requeue, preempt, scancel, disk, ticks)
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB: one that is mounted for it, or where that is not allowed a small /dev/shm."""
    place = tmp_path / "disk"
    place.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size=48m,uid={os.geteuid()}"
    if subprocess.run([*root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False).returncode == 0:
        try:
            yield place
        finally:
            subprocess.run([*root, "umount", "-l", str(place)], check=True)
        return
    shared = Path("/dev/shm")
    assert shutil.disk_usage(shared).total < 1 << 30, "no file system here can be filled"
    small = Path(tempfile.mkdtemp(dir=shared))
    try:
        yield small
    finally:
        shutil.rmtree(small)


def chaotic(folder: Path) -> Path:
    launch = f"{{device: cpu, checkpoint_every: {EVERY}}}"
    study = write_real(folder, launch, "[1, 2]", "[0, 0.3]")
    text = (
        study.read_text().replace("tokens: 12800,", f"tokens: {STABLE},").replace("tokens: 6400,", f"tokens: {DECAY},")
    )
    study.write_text(text)
    return study


def test_a_study_under_constant_faults_ends_as_one_that_was_left_alone(
    cluster: Cluster, small_disk: Path, tmp_path: Path
) -> None:
    study = chaotic(tmp_path)
    alone = run.run(Options(study, tmp_path / "alone", executor="debug"), Silent())
    (tmp_path / "results").symlink_to(small_disk / "results")
    (small_disk / "results").mkdir()
    folder = Folder(tmp_path / "results")
    pace(folder, PACE)
    chaos = Chaos(cluster, folder, study)
    submit(study, perform=SLOW)
    todo = [kind for kind in FAULTS for _ in range(TIMES)]
    chaos.random.shuffle(todo)
    until = time.monotonic() + LONGEST
    while todo and time.monotonic() < until:
        if chaos.strike(todo[-1]):
            todo.pop()
            time.sleep(chaos.random.uniform(0.5, 3))
        elif in_queue() == 0:
            if set(words(folder).values()) == {"done"}:
                break
            chaos.again(None)
        chaos.revive()
        time.sleep(0.2)
    settle(chaos)
    counts = Counter(hit.kind for hit in chaos.hits)
    print(f"{len(chaos.hits)} faults over {len(weights(folder))} runs: {dict(counts)}")
    print("; ".join(f"{hit.kind} {hit.state}" for hit in chaos.hits))
    assert weights(folder) == weights(alone.folder)
    finished_once(folder)
    assert not todo, f"the study was done before {Counter(todo)}"
    assert sum(hit.after for hit in chaos.hits) >= 0.8 * len(chaos.hits)
    resumed = [
        (event["tokens"], states.read_segment(state)["tokens_from"])
        for state in folder.all_states()
        for event in attempts.read_events(state)
        if event["kind"] == "attempt_started" and event["attempt"] > 0
    ]
    assert sum(tokens > begun for tokens, begun in resumed) >= 0.8 * len(resumed) and len(resumed) >= 15


def settle(chaos: Chaos) -> None:
    """No faults any more: nodes are up, what is held is let go, and ticks go on until all is done."""
    pace(chaos.folder, 0)
    for name in list(chaos.dead):
        chaos.cluster.start_node(name)
    until = time.monotonic() + 300
    while set(words(chaos.folder).values()) != {"done"}:
        assert time.monotonic() < until, words(chaos.folder)
        if in_queue() == 0:
            chaos.again(None)
        time.sleep(0.5)
    chaos.cluster.wait_for(lambda: in_queue() == 0, "an empty queue", 90)


def finished_once(folder: Folder) -> None:
    """Every state of the plan was finished by one attempt, and nothing else is there."""
    planned = {name for one in read_json(folder.plan_json)["runs"] for name in (one["base"], *one["path"])}
    assert {state.id for state in folder.all_states()} == planned
    for state in folder.all_states():
        events = [event for event in attempts.read_events(state) if event["kind"] == "finished"]
        assert len(events) == 1 or not state.attempt_numbers(), state.id
