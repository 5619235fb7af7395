"""Rank 0 has the orders; the other ranks train with it, stand by while it does the rest, and leave when it says so."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.launch.perform import perform
from harness.launch.status import _at_work as at_work
from harness.launch.together import dismiss, follow, leading
from harness.launch.work import Order, Result
from harness.launch.worker import Progress, attempt
from harness.store import states
from harness.store.atomic import read_json
from harness.train.loop import Loop
from harness.train.ranks import Ranks
from tests.train.build import BATCH, StudyFolder, piece

SETTINGS = {"device": "cpu", "threads": 1, "micro_batch": None, "checkpoint_every": None, "keep": "last", "code": {}}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def silent(fields: Any) -> None:
    """Progress that nobody watches."""


class Processes:
    """Forked ranks: `lead` in rank 0, `follow` in the others; what each returns or raises goes to a file."""

    def __init__(self, root: Path, world: int, lead: Callable[[Ranks], Any], work: Any = perform) -> None:
        self.root = root
        self.pids = [self._fork(rank, world, lead, work) for rank in range(world)]

    def _fork(self, rank: int, world: int, lead: Callable[[Ranks], Any], work: Any) -> int:
        pid = os.fork()
        if pid:
            return pid
        said: Any = None
        try:
            ranks = Ranks.join(rank, world, rank, self.root / "meet", "cpu")
            said = follow(ranks, work) if rank else lead(ranks)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            (self.root / f"{rank}.json").write_text(json.dumps(said))
            os._exit(0)

    def wait(self) -> list[Any]:
        for pid in self.pids:
            os.waitpid(pid, 0)
        files = [self.root / f"{rank}.json" for rank in range(len(self.pids))]
        return [read_json(file) if file.exists() else "killed" for file in files]


def order(study: StudyFolder, name: str, kind: Any = "train") -> Order:
    return Order(str(study.folder.root), kind, name, SETTINGS, {"start": []})


def test_all_train_and_rank_0_alone_does_the_rest(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    first, second = study.declare([piece(0, 6 * BATCH)], [3 * BATCH, 6 * BATCH])
    here: list[str] = []

    def work(given: Order, progress: Progress) -> Result:
        here.append(given.kind)
        (tmp_path / f"kinds-{os.getpid()}.json").write_text(json.dumps(here))
        return Result("evaluated") if given.kind == "evaluate" else perform(given, progress)

    def lead(ranks: Ranks) -> list[str]:
        do = leading(ranks, work)
        kinds = [(study.base, "base"), (first, "train"), (first, "evaluate"), (second, "train"), (second, "evaluate")]
        outcomes = [attempt(do, order(study, name, kind), silent).outcome for name, kind in kinds]
        dismiss(ranks)
        return outcomes

    processes = Processes(tmp_path, 2, lead, work)
    assert processes.wait() == [["prepared", "trained", "evaluated", "trained", "evaluated"], None]
    done = [read_json(tmp_path / f"kinds-{pid}.json") for pid in processes.pids]
    assert done == [["base", "train", "evaluate", "train", "evaluate"], ["train", "train"]]
    for name in (first, second):
        assert states.verify_state(study.state(name)) is not None
        assert read_json(study.state(name).attempt(0) / "env.json")["numerics"]["world"] == 2


def test_an_order_that_fails_on_any_rank_leaves_them_ready_for_the_next(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 3 * BATCH)], [3 * BATCH])

    def work(given: Order, progress: Progress) -> Result:
        """Fails before training on rank 1, then after it on rank 0, whose process the order names, then on none."""
        if given.detail.get("fail") == "before" and given.detail["pid"] != os.getpid():
            raise MemoryError("the follower has no memory")
        result = perform(given, progress)
        if given.detail.get("fail") == "after" and given.detail["pid"] == os.getpid():
            raise OSError(28, "No space left on device")
        return result

    def lead(ranks: Ranks) -> list[Any]:
        do, plain = leading(ranks, work), order(study, name)
        ended = []
        for fail in ("before", "after", None):
            detail = {"start": [], "fail": fail, "pid": os.getpid()}
            result = attempt(do, replace(plain, detail=detail), silent)
            ended.append([result.outcome, None if result.failure is None else result.failure.error])
        unknown = attempt(do, replace(plain, state="0" * 64), silent)
        dismiss(ranks)
        return [*ended, unknown.outcome]

    ended, follower = Processes(tmp_path, 2, lead, work).wait()
    assert ended[0] == ["failed", "RankFailed: rank 1 of 2 failed: MemoryError: the follower has no memory"]
    assert ended[1][0] == "failed" and "No space left" in ended[1][1]
    assert ended[2:] == [["trained", None], "failed"] and follower is None


def test_a_follower_that_waits_for_orders_outlives_a_signal_and_leaves_when_rank_0_dies(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 3 * BATCH)], [3 * BATCH])

    def lead(ranks: Ranks) -> None:
        attempt(leading(ranks, perform), order(study, name), silent)
        (tmp_path / "trained").touch()
        time.sleep(600)

    processes = Processes(tmp_path, 3, lead)
    deadline = time.monotonic() + 60
    while not (tmp_path / "trained").exists():
        assert time.monotonic() < deadline, "they never trained"
        time.sleep(0.01)
    for pid in processes.pids[1:]:
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert [os.waitpid(pid, os.WNOHANG) for pid in processes.pids[1:]] == [(0, 0), (0, 0)]
    os.kill(processes.pids[0], signal.SIGKILL)
    ended = processes.wait()
    assert ended[0] == "killed"
    assert all(said.startswith("RankLost: a rank was lost") for said in ended[1:])


def test_the_strategy_of_an_order_is_what_runs_and_a_rank_that_dies_is_named_in_result_and_status(
    tmp_path: Path,
) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 6 * BATCH)], [6 * BATCH])
    sharded = replace(order(study, name), settings={**SETTINGS, "strategy": "fsdp"})

    def work(given: Order, progress: Progress) -> Result:
        if torch.distributed.get_rank() == 1:
            plain, count = Loop.update, [0]

            def update(loop: Loop) -> None:
                count[0] += 1
                if count[0] == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                plain(loop)

            Loop.update = update  # type: ignore[method-assign]
        return perform(given, progress)

    def lead(ranks: Ranks) -> list[Any]:
        result = attempt(leading(ranks, work), sharded, silent)
        assert result.failure is not None
        return [result.failure.kind, result.failure.error]

    (kind, error), follower = Processes(tmp_path, 2, lead, work).wait()
    assert (kind, follower) == ("rank", "killed") and "found: rank 1 of 2 (process" in error and " died (" in error
    state = study.state(name)
    assert read_json(state.attempt(0) / "env.json")["numerics"]["strategy"] == "fsdp"
    shown, why = at_work(state, [0], None, {}, 60.0)
    assert shown == "failed" and "rank 1 of 2 (process" in why
