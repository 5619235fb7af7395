"""Several processes that train one segment together end where one process ends, and none hangs when one is gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.store import states
from harness.store.atomic import read_json, read_json_lines
from harness.store.attempts import begin
from harness.store.checkpoints import verify
from harness.study.errors import UserError
from harness.train import keeper
from harness.train.loop import Loop
from harness.train.ranks import Ranks
from tests.train import build
from tests.train.build import BATCH, LENGTH, StudyFolder, piece
from tests.train.groups import (
    END,
    RATE,
    ROWS,
    STEPS,
    Group,
    assert_close,
    assert_near,
    at_update,
    path,
    rows,
    together,
    trained,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("alone"), 1, path())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("pair"), 2, path())


def test_two_ranks_train_as_one_process_does(alone: tuple[StudyFolder, str], pair: tuple[StudyFolder, str]) -> None:
    assert_close(pair, alone)
    cursors = [(study.state(name).checkpoint(END) / "cursor.json").read_bytes() for study, name in (alone, pair)]
    assert cursors[0] == cursors[1]


def test_four_ranks_train_as_one_process_does(alone: tuple[StudyFolder, str], tmp_path: Path) -> None:
    assert_close(trained(tmp_path, 4, path()), alone)


def test_every_rank_cuts_its_part_into_micro_batches(tmp_path: Path) -> None:
    """Of three rows: they do not divide a part of four, and would reach into the next rank's rows."""
    pieces = [piece(0, 2 * END, batch_tokens=2 * BATCH, lr=RATE)]
    found = []
    for world in (1, 2):
        study = StudyFolder(tmp_path / str(world))
        (name,) = study.declare(pieces, [2 * END])
        together(study, name, world, numerics=replace(build.NUMERICS, micro_batch=3 * LENGTH))
        found.append((study, name))
    assert_close(found[1], found[0], 2 * END)


@pytest.mark.parametrize("optimizer", [{"clip": 0.05, "z_loss": 1e-2, "ema": 0.9}, {"clip": None}])
def test_clipping_z_loss_and_average_are_those_of_the_whole_batch(optimizer: dict[str, Any], tmp_path: Path) -> None:
    pieces = path(optimizer=optimizer)
    by_one, by_two = trained(tmp_path / "1", 1, pieces), trained(tmp_path / "2", 2, pieces)
    assert_close(by_two, by_one)
    if "ema" in optimizer:
        means = [load_file(s.state(n).checkpoint(END) / "ema.safetensors") for s, n in (by_one, by_two)]
        for name in means[0]:
            assert_near(means[1][name], means[0][name])


def test_the_same_world_twice_gives_the_same_bits(pair: tuple[StudyFolder, str], tmp_path: Path) -> None:
    again = trained(tmp_path, 2, path())
    assert again[0].hashes(again[1]) == pair[0].hashes(pair[1])
    assert rows(*again) == rows(*pair)


def test_cuts_change_no_bit_at_an_equal_world(pair: tuple[StudyFolder, str], tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    names = study.declare(path(), [5 * BATCH, END])
    for name in names:
        together(study, name, 2, checkpoint_every=2 * BATCH)
    assert study.hashes(names[1]) == pair[0].hashes(pair[1])


def test_rank_0_alone_writes_and_records_how_many_there_were(pair: tuple[StudyFolder, str]) -> None:
    study, name = pair
    state = study.state(name)
    assert state.attempt_numbers() == [0]
    assert read_json(state.attempt(0) / "env.json")["numerics"] == {
        **build.NUMERICS.record(),
        "world": 2,
        "strategy": "ddp",
    }
    kinds = [event["kind"] for event in read_json_lines(state.events)]
    assert kinds == ["attempt_started", "kernels", "checkpoint", "finished"]
    assert read_json(state.attempt(0) / "exit.json")["outcome"] == "trained"
    assert together(study, name, 2) == [{"kind": "trained", "tokens": END, "steps": 0}] * 2


@pytest.mark.parametrize("of_rank, world_after", [(0, 2), (1, 2), (1, 1)])
def test_a_signal_to_any_rank_stops_all_at_one_update_and_training_goes_on(
    of_rank: int,
    world_after: int,
    pair: tuple[StudyFolder, str],
    alone: tuple[StudyFolder, str],
    tmp_path: Path,
) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    hit = at_update(5, lambda: os.kill(os.getpid(), signal.SIGTERM), of_rank)
    stopped = Group(study, name, 2, hit).wait()
    assert stopped == [{"kind": "stopped", "tokens": 5 * BATCH, "steps": 5}] * 2
    assert verify(study.state(name).checkpoint(5 * BATCH)).tokens == 5 * BATCH
    (event,) = [event for event in read_json_lines(study.state(name).events) if event["kind"] == "stopped"]
    assert event["signal"] == "SIGTERM"
    assert [ended["steps"] for ended in together(study, name, world_after)] == [STEPS - 5] * world_after
    assert_close((study, name), alone)
    if world_after == 2:
        assert study.hashes(name) == pair[0].hashes(pair[1])


@pytest.mark.parametrize("of_rank", [0, 2])
def test_a_rank_that_dies_ends_the_others_and_damages_nothing(
    of_rank: int, alone: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    """Also those that were not waiting for it themselves, while the ones that were are still there."""
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    killed = at_update(6, lambda: os.kill(os.getpid(), signal.SIGKILL), of_rank)
    ended = Group(study, name, 4, killed, checkpoint_every=4 * BATCH).wait()
    assert ended.pop(of_rank) == {}
    assert [end["error"] for end in ended] == ["RankLost"] * 3
    named = f"a rank was lost, as rank {{}} of 4 found: rank {of_rank} of 4 (process "
    others = [rank for rank in range(4) if rank != of_rank]
    assert all(end["said"].startswith(named.format(rank)) for rank, end in zip(others, ended, strict=True))
    assert all(" died (" in end["said"] and "others" not in end for end in ended)
    state = study.state(name)
    assert states.read_done(state) is None and verify(state.checkpoint(4 * BATCH)).step == 4
    if of_rank != 0:
        ended_as = read_json(state.attempt(0) / "exit.json")
        assert ended_as["outcome"] == "failed" and f"rank {of_rank} of 4 (process" in ended_as["error"]
    assert [end["steps"] for end in together(study, name, 2)] == [STEPS - 4] * 2
    assert_close((study, name), alone)


def _fail() -> None:
    raise MemoryError("no memory for the activations")


@pytest.mark.parametrize("of_rank", [0, 1])
def test_a_rank_that_fails_says_why_and_the_others_leave_with_it(of_rank: int, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    ended = Group(study, name, 2, at_update(3, _fail, of_rank)).wait()
    assert ended[of_rank] == {"error": "MemoryError", "said": "no memory for the activations"}
    said = f"rank {of_rank} of 2 failed: MemoryError: no memory for the activations"
    assert ended[1 - of_rank] == {"error": "RankFailed", "said": said}
    assert "no memory for the activations" in read_json(study.state(name).attempt(0) / "exit.json")["error"]


def test_when_rank_0_is_fenced_all_stop_with_that_outcome(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    newer = at_update(3, lambda: begin(study.state(name), {}) and None, of_rank=0)
    ended = Group(study, name, 2, newer, checkpoint_every=4 * BATCH).wait()
    assert [end["kind"] for end in ended] == ["fenced", "fenced"]
    assert study.state(name).checkpoint_tokens() == []


def test_a_checkpoint_that_cannot_be_written_ends_all(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    def prepare(ranks: Ranks) -> None:
        keeper.write_checkpoint = full

    ended = Group(study, name, 2, prepare, checkpoint_every=4 * BATCH).wait()
    assert [end["error"] for end in ended] == ["OSError", "RankFailed"]
    assert "No space left" in ended[1]["said"]


def test_a_run_that_blows_up_is_diverged_on_every_rank(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 5 * BATCH), piece(5 * BATCH, END, lr=1e38)], [END])
    ended = together(study, name, 2, checkpoint_every=2 * BATCH)
    assert ended == [{"kind": "diverged", "tokens": 6 * BATCH, "steps": 6}] * 2
    done = states.read_done(study.state(name))
    assert done is not None and done.outcome == "diverged" and done.step == 6


def test_weights_that_drift_apart_end_the_run_before_they_are_kept(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def prepare(ranks: Ranks) -> None:
        if ranks.rank == 1:
            plain = Loop.update

            def update(loop: Loop) -> None:
                plain(loop)
                with torch.no_grad():
                    next(loop.model.parameters()).view(-1)[0] += 1e-3

            Loop.update = update  # type: ignore[method-assign]

    ended = Group(study, name, 2, prepare).wait()
    assert all("not the same on all 2 ranks" in end["said"] for end in ended)
    assert study.state(name).checkpoint_tokens() == []


def test_a_parameter_that_one_rank_alone_uses_gets_its_gradient_and_one_that_none_uses_gets_none(
    tmp_path: Path,
) -> None:
    def child(rank: int) -> None:
        ranks = Ranks.join(rank, 2, rank, f"file://{tmp_path}/meet", "cpu")
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.full((2,), 1.0 + rank)
        if rank == 1:
            parameters[1].grad = torch.tensor([5.0, 6.0])
        figures = torch.tensor([1.0, 10.0 * rank])
        ranks.sum_gradients(parameters, figures)
        gradients = [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]
        (tmp_path / f"{rank}.json").write_text(json.dumps([gradients, figures.tolist()]))

    _fork_all(child, 2)
    for rank in range(2):
        gradients, figures = json.loads((tmp_path / f"{rank}.json").read_text())
        assert gradients == [[3.0, 3.0], [5.0, 6.0], None] and figures == [2.0, 10.0]


def _fork_all(child: Callable[[int], None], world: int) -> None:
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                child(rank)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def test_a_batch_that_cannot_be_divided_is_refused_on_every_rank(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    ended = together(study, name, 3)
    assert {end["error"] for end in ended} == {"UserError"}
    said = (
        "a batch of 4 rows (`batch_tokens: 64` in rows of `context.length: 16`) cannot be divided among 3 processes "
        "that train together (`launch.nodes` times `launch.gpus`); use one of 1, 2, 4, or another batch."
    )
    assert {end["said"] for end in ended} == {said}


def test_ranks_on_unequal_machines_are_refused(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def prepare(ranks: Ranks) -> None:
        if ranks.rank == 1:
            object.__setattr__(build.NUMERICS, "processor", "another")

    ended = Group(study, name, 2, prepare).wait()
    assert all("cannot train together" in end["said"] and "'another'" in end["said"] for end in ended)


def test_one_process_has_no_group_and_divides_nothing() -> None:
    alone = Ranks.join(0, 1, 0, "tcp://nowhere:1")
    assert alone.part(4) == slice(0, 4) and alone.agree(7) == 7 and alone.led(lambda: "x") == "x"
    assert not torch.distributed.is_initialized()
    parts = [Ranks(rank, 2).part(ROWS) for rank in range(2)]
    assert parts == [slice(0, 2), slice(2, 4)]
    with pytest.raises(UserError, match="cannot be divided among 3"):
        Ranks(0, 3).check_rows(BATCH, LENGTH)
