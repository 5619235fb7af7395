"""Processes that train a segment together, and what is compared of what they made."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.store.metrics import read_steps
from harness.train.loop import Loop
from harness.train.ranks import Ranks
from harness.train.segment import TrainSettings, train_segment
from tests.train import build
from tests.train.build import BATCH, LENGTH, StudyFolder, piece

STEPS = 12
END = STEPS * BATCH
ROWS = BATCH // LENGTH
# One process sums a batch at once, several sum it in parts. Relative; seen: 1.8e-7 in losses and norms of gradients,
# 3e-6 in tensors after twelve updates. The rate is small, since these models are chaotic at larger ones: at 1e-2 norms
# of gradients differ by 2e-6 on one processor and by 2e-7 on another.
ROUNDING, ROUNDING_OF_TENSORS = 2e-6, 3e-5
RATE = 2e-3
# Of losses: weights are rounded to bf16 where they are gathered, and matrix products before.
BF16 = 5e-3
Prepare = Callable[[Ranks], None]


def path(**changes: Any) -> list[dict[str, Any]]:
    """A constant rate, then a decay with another mixture."""
    decay = {"shape": "1-sqrt", "from": RATE, "to": 0.0, "start": 6 * BATCH, "end": END}
    shares = {"words": "1/2", "sums": "1/2"}
    later = {"lr": decay, "mixture": shares, "blend_from": 6 * BATCH}
    return [piece(0, 6 * BATCH, lr=RATE, **changes), piece(6 * BATCH, END, "decay", **later, **changes)]


class Group:
    """Forked processes that train a segment together. Each leaves what came of it in a file of its own."""

    def __init__(
        self,
        study: StudyFolder,
        name: str,
        world: int,
        prepare: Prepare = lambda ranks: None,
        stays: bool = True,
        extra: Sequence[dict[str, Any]] = (),
        **settings: Any,
    ) -> None:
        """stays: a process that has lost a rank waits for the others' ends before its own. extra: as `train_segment`
        takes it."""
        self.stays = stays
        self.extra = extra
        self.folder = study.root / f"group-{time.monotonic_ns()}"
        self.folder.mkdir()
        self.pids = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                self._child(study, name, rank, world, prepare, settings)
            self.pids.append(pid)

    def _child(
        self, study: StudyFolder, name: str, rank: int, world: int, prepare: Prepare, settings: dict[str, Any]
    ) -> None:
        said: dict[str, Any] = {}
        try:
            ranks = Ranks.join(rank, world, rank, self.folder / "meet", "cpu")
            prepare(ranks)
            how = TrainSettings(**{"numerics": build.NUMERICS, **settings})
            said = asdict(train_segment(study.folder, name, how, extra=self.extra, ranks=ranks))
            ranks.leave()
        except BaseException as error:
            said = {"error": type(error).__name__, "said": str(error)}
        finally:
            self._say(rank, said)
            if self.stays and said.get("error") == "RankLost" and not self._others_end(world - 1):
                self._say(rank, {**said, "others": "still wait"})
            os._exit(0)

    def _say(self, rank: int, said: dict[str, Any]) -> None:
        (self.folder / f"{rank}.json").write_text(json.dumps(said))

    def _others_end(self, count: int) -> bool:
        """Whether `count` ranks have said how they ended while this process, which has lost one, is still there."""
        deadline = time.monotonic() + 20
        while len(list(self.folder.glob("*.json"))) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return time.monotonic() < deadline

    def wait(self) -> list[dict[str, Any]]:
        """What came of each rank; empty for one that was killed."""
        for pid in self.pids:
            os.waitpid(pid, 0)
        files = [self.folder / f"{rank}.json" for rank in range(len(self.pids))]
        return [json.loads(file.read_text()) if file.exists() else {} for file in files]


def together(study: StudyFolder, name: str, world: int, **settings: Any) -> list[dict[str, Any]]:
    return Group(study, name, world, **settings).wait()


def trained(root: Path, world: int, pieces: Sequence[dict[str, Any]], **settings: Any) -> tuple[StudyFolder, str]:
    """A study whose one segment `world` ranks have trained."""
    study = StudyFolder(root)
    (name,) = study.declare(pieces, [END])
    ended = together(study, name, world, **settings)
    assert ended == [{"kind": "trained", "tokens": END, "steps": STEPS}] * world
    return study, name


def rows(study: StudyFolder, name: str) -> list[dict[str, Any]]:
    """The segment's metrics, less what depends on the clock or counts from the attempt's beginning."""
    steps = read_steps(study.state(name))
    assert [row["step"] for row in steps.rows] == list(range(1, STEPS + 1)) and not steps.disagreements
    return [{key: row[key] for key in row if key not in ("time", "tokens_per_second", "flops")} for row in steps.rows]


def tensors(study: StudyFolder, name: str, tokens: int = END) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint."""
    checkpoint = study.state(name).checkpoint(tokens)
    weights = load_file(checkpoint / "model" / "model.safetensors")
    return weights | load_file(checkpoint / "optimizer.safetensors")


def assert_close(a: tuple[StudyFolder, str], b: tuple[StudyFolder, str], end: int = END) -> None:
    """Equal to the rounding of fp32 sums: all metrics at every step, weights and optimizer at the end."""
    for ours, theirs in zip(rows(*a), rows(*b), strict=True):
        assert ours["loss_by_source"] == pytest.approx(theirs["loss_by_source"], rel=ROUNDING)
        flat = [{key: row[key] for key in row if key != "loss_by_source"} for row in (ours, theirs)]
        assert flat[0] == pytest.approx(flat[1], rel=ROUNDING)
        assert (ours["labels"], ours["tokens"], ours["lr"]) == (theirs["labels"], theirs["tokens"], theirs["lr"])
    ours, theirs = tensors(*a, end), tensors(*b, end)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_near(ours[name], theirs[name])


def assert_near(a: torch.Tensor, b: torch.Tensor) -> None:
    assert float((a - b).norm()) <= ROUNDING_OF_TENSORS * float(b.norm())


def stop_at(number: int, of_rank: int = 1) -> Prepare:
    """Prepares one rank to be asked to stop in its update `number`, after which all of them do."""
    return at_update(number, lambda: signal.raise_signal(signal.SIGTERM), of_rank)


def at_update(number: int, act: Callable[[], None], of_rank: int = 1) -> Prepare:
    """Prepares one rank to do something before its update `number`."""

    def prepare(ranks: Ranks) -> None:
        plain, count = Loop.update, [0]

        def update(loop: Loop) -> None:
            count[0] += 1
            if count[0] == number:
                act()
            plain(loop)

        if ranks.rank == of_rank:
            Loop.update = update  # type: ignore[method-assign]

    return prepare
