"""One segment, however it is cut, killed, stopped and taken up again, ends in the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.store import checkpoints, states
from harness.store.atomic import read_json_lines
from harness.store.attempts import begin
from harness.store.metrics import read_steps
from harness.study.errors import UserError
from harness.train import checkpoint, keeper, segment
from harness.train.loop import Loop
from tests.train import build
from tests.train.build import BATCH, StudyFolder, piece

STEPS = 24
END = STEPS * BATCH
EVERY = 4 * BATCH
Hashes = dict[str, str]


def path(precision: str = "fp32") -> list[dict[str, Any]]:
    """Warm-up, constant rate, then a decay with another mixture in which the blend starts anew."""
    warmup = {"shape": "linear", "from": 0.0, "to": 1e-2, "start": 0, "end": 4 * BATCH, "at": "end"}
    decay = {"shape": "1-sqrt", "from": 1e-2, "to": 0.0, "start": 16 * BATCH, "end": END}
    shares = {"words": "1/2", "sums": "1/2"}
    return [
        piece(0, 4 * BATCH, lr=warmup, precision=precision),
        piece(4 * BATCH, 16 * BATCH, precision=precision),
        piece(16 * BATCH, END, "decay", lr=decay, mixture=shares, blend_from=16 * BATCH, precision=precision),
    ]


def events(study: StudyFolder, name: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_json_lines(study.state(name).events) if event["kind"] == kind]


def undisturbed(root: Path, precision: str) -> Hashes:
    """What an attempt that nothing disturbs ends in."""
    torch.set_num_threads(1)
    study = StudyFolder(root)
    (whole,) = study.declare(path(precision), [END])
    assert study.train(whole).steps == STEPS
    return study.hashes(whole)


@pytest.fixture(scope="module", params=["fp32", "bf16-mixed"])
def uncut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Hashes]:
    return request.param, undisturbed(tmp_path_factory.mktemp("uncut"), request.param)


@pytest.fixture(scope="module")
def uncut_fp32(tmp_path_factory: pytest.TempPathFactory) -> Hashes:
    return undisturbed(tmp_path_factory.mktemp("uncut"), "fp32")


def test_cuts_change_no_bit(uncut: tuple[str, Hashes], tmp_path: Path) -> None:
    precision, expected = uncut
    study = StudyFolder(tmp_path)
    cuts = [3 * BATCH, 4 * BATCH, 11 * BATCH, 16 * BATCH, 21 * BATCH, END]
    ids = study.declare(path(precision), cuts)
    steps = [study.train(name).steps for name in ids]
    assert steps == [3, 1, 7, 5, 5, 3]
    assert study.hashes(ids[-1]) == expected


class Child:
    """A forked process that trains a segment, slowed down so that it can be hit at a chosen moment."""

    def __init__(self, study: StudyFolder, name: str, sleep: float = 0.0, prepare: Callable[[], None] | None = None):
        self.pid = os.fork()
        if self.pid == 0:
            code = 9
            try:
                if sleep:
                    _slow_down(sleep)
                if prepare is not None:
                    prepare()
                study.train(name, checkpoint_every=EVERY)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def wait(self) -> int:
        """Minus the signal that ended it, else its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _slow_down(seconds: float) -> None:
    plain = Loop.update

    def update(loop: Loop) -> None:
        time.sleep(seconds)
        plain(loop)

    Loop.update = update  # type: ignore[method-assign]


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the child never got there"
        time.sleep(0.002)


def test_two_kills_change_no_bit(uncut: tuple[str, Hashes], tmp_path: Path) -> None:
    precision, expected = uncut
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(precision), [END])
    for count, delay in ((1, 0.013), (3, 0.031)):
        child = Child(study, name, sleep=0.01)
        _wait_for(lambda: len(events(study, name, "checkpoint")) >= count)  # noqa: B023
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert states.read_done(study.state(name)) is None
    assert study.train(name).kind == "trained"
    started = [event["tokens"] for event in events(study, name, "attempt_started")]
    assert len(started) == 3 and 0 == started[0] < started[1] < started[2] < END
    assert study.hashes(name) == expected
    merged = read_steps(study.state(name))
    assert [row["step"] for row in merged.rows] == list(range(1, STEPS + 1))
    assert merged.disagreements == []


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _on_call(owner: Any, name: str, call: int, before: bool) -> Callable[[], None]:
    """Prepares a process to die at a call of `owner.name`: before it or after it."""

    def prepare() -> None:
        plain, calls = getattr(owner, name), [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if before and calls[0] == call:
                _die()
            result = plain(*args, **kwargs)
            if calls[0] == call:
                _die()
            return result

        setattr(owner, name, wrapped)

    return prepare


MOMENTS = {
    "before the first update": (_on_call(Loop, "update", 1, True), 0),
    "in an update after a checkpoint": (_on_call(Loop, "update", 7, True), 4),
    "while weights are written": (_on_call(checkpoint, "save_model", 2, False), 4),
    "before the optimizer is written": (_on_call(checkpoint, "save_file", 3, True), 8),
    "before the checkpoint is sealed": (_on_call(checkpoints, "seal", 2, True), 4),
    "before its marker is written": (_on_call(checkpoints, "write_marker", 2, True), 4),
    "before it is renamed": (_on_call(checkpoints, "publish", 3, True), 8),
    "after it is renamed": (_on_call(checkpoints, "publish", 2, False), 8),
    "while an old checkpoint is removed": (_on_call(checkpoint.shutil, "rmtree", 1, True), 12),
    "before the state is marked done": (_on_call(states, "write_done", 1, True), STEPS),
    "before the last clean-up": (_on_call(keeper, "remove_checkpoints", 6, True), STEPS),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_a_bad_moment_changes_no_bit(moment: str, uncut_fp32: Hashes, tmp_path: Path) -> None:
    prepare, resumed_at = MOMENTS[moment]
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    assert Child(study, name, prepare=prepare).wait() == -signal.SIGKILL
    assert study.train(name, checkpoint_every=EVERY).kind == "trained"
    assert study.hashes(name) == uncut_fp32
    if resumed_at < STEPS:
        assert events(study, name, "attempt_started")[-1]["tokens"] == resumed_at * BATCH
    assert study.state(name).checkpoint_tokens() == [END] or moment == "before the last clean-up"
    assert [p.name for p in study.state(name).checkpoints.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR2])
def test_a_warning_signal_leaves_a_checkpoint_and_changes_no_bit(
    sent: signal.Signals, uncut_fp32: Hashes, tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    child = Child(study, name, sleep=0.01)
    _wait_for(lambda: len(events(study, name, "checkpoint")) >= 1)
    time.sleep(0.015)
    os.kill(child.pid, sent)
    assert child.wait() == 0
    (stopped,) = events(study, name, "stopped")
    assert stopped["signal"] == sent.name and EVERY <= stopped["tokens"] < END
    assert study.state(name).checkpoint_tokens()[-1] == stopped["tokens"]
    assert study.train(name).steps == (END - stopped["tokens"]) // BATCH
    assert events(study, name, "attempt_started")[-1]["tokens"] == stopped["tokens"]
    assert study.hashes(name) == uncut_fp32


def _alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("spoil", ["model/model.safetensors", "optimizer.safetensors", "cursor.json", "DONE.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(spoil: str, uncut_fp32: Hashes, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    assert study.train(name, checkpoint_every=EVERY, stop_after=14).kind == "stopped"
    assert study.state(name).checkpoint_tokens() == [12 * BATCH, 14 * BATCH]
    spoilt = study.state(name).checkpoint(14 * BATCH) / spoil
    spoilt.write_bytes(b"") if spoil == "DONE.json" else _alter(spoilt)
    assert study.train(name).steps == STEPS - 12
    (damaged,) = events(study, name, "checkpoint_damaged")
    assert str(spoilt) in damaged["reason"]
    assert events(study, name, "attempt_started")[-1]["tokens"] == 12 * BATCH
    assert study.hashes(name) == uncut_fp32


def test_a_damaged_parent_is_named(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    first, second = study.declare(path(), [8 * BATCH, END])
    study.train(first)
    spoilt = study.state(first).checkpoint(8 * BATCH) / "optimizer.safetensors"
    _alter(spoilt)
    with pytest.raises(UserError, match=str(spoilt)):
        study.train(second)
    assert events(study, second, "failed")


def test_a_finished_segment_whose_checkpoint_was_altered_is_trained_again(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    study.train(name, checkpoint_every=EVERY, keep="all")
    expected = study.hashes(name)
    _alter(study.state(name).checkpoint(END) / "model/model.safetensors")
    assert study.train(name).steps == 4
    assert study.hashes(name) == expected
    assert study.train(name).steps == 0


def test_an_attempt_that_meets_a_newer_one_stops_before_it_writes(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    state = study.state(name)
    settings = segment.TrainSettings(build.NUMERICS)
    outcome = segment.train_segment(study.folder, name, settings, lambda fields: begin(state, {}) and None)
    assert outcome.kind == "fenced"
    assert state.checkpoint_tokens() == [] and states.read_done(state) is None


def test_the_newest_checkpoint_of_another_state_on_the_path_is_taken(uncut_fp32: Hashes, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    trunk = study.declare(path(), [8 * BATCH, 13 * BATCH])
    for name in trunk:
        study.train(name)
    found = [
        {"path": str(study.state(trunk[i]).checkpoint(t)), "tokens": t} for i, t in enumerate((8 * BATCH, 13 * BATCH))
    ]
    (whole,) = study.declare(path(), [END])
    outcome = segment.train_segment(study.folder, whole, segment.TrainSettings(build.NUMERICS), extra=found)
    assert outcome.steps == STEPS - 13
    assert study.hashes(whole) == uncut_fp32


@pytest.mark.parametrize("whose", ["its own", "another segment's"])
def test_a_checkpoint_at_the_very_end_leaves_nothing_to_train_and_the_same_bits(
    whose: str, uncut_fp32: Hashes, tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    (longer,) = study.declare([*path(), piece(END, END + EVERY, "after", blend_from=END)], [END + EVERY])
    (name,) = study.declare(path(), [END])
    study.train(longer, checkpoint_every=EVERY, keep="all")
    there = study.state(longer).checkpoint(END)
    if whose == "its own":
        there = shutil.copytree(there, study.state(name).checkpoint(END))
    outcome = segment.train_segment(
        study.folder, name, segment.TrainSettings(build.NUMERICS), extra=[{"path": str(there), "tokens": END}]
    )
    assert outcome == segment.Outcome("trained", END, 0)
    assert study.hashes(name) == uncut_fp32
    done = states.read_done(study.state(name))
    assert done is not None and (done.tokens, done.step) == (END, STEPS)
    assert read_steps(study.state(name)).rows == [], "its updates are told where they were made"


def test_a_checkpoint_of_another_path_is_passed_over_and_named(uncut_fp32: Hashes, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (other,) = study.declare([piece(0, 8 * BATCH, lr=2e-3)], [8 * BATCH])
    study.train(other)
    (name,) = study.declare(path(), [END])
    found = [{"path": str(study.state(other).checkpoint(8 * BATCH)), "tokens": 8 * BATCH}]
    outcome = segment.train_segment(study.folder, name, segment.TrainSettings(build.NUMERICS), extra=found)
    assert outcome.steps == STEPS
    assert study.hashes(name) == uncut_fp32
    assert "is not on the path" in events(study, name, "checkpoint_damaged")[0]["reason"]


def test_inner_checkpoints_carry_the_name_that_a_plan_gives_to_that_state(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    study.train(name, checkpoint_every=6 * BATCH, keep="all")
    whole, damaged = checkpoints.complete(study.state(name))
    assert damaged == [] and [marker.tokens for marker in whole] == [n * BATCH for n in (24, 18, 12, 6)]
    named = study.declare(path(), [n * BATCH for n in (6, 12, 18, 24)])
    assert [marker.fingerprint for marker in reversed(whole)] == named


def test_keep_last_leaves_the_final_checkpoint_alone(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    study.train(name, checkpoint_every=EVERY)
    assert study.state(name).checkpoint_tokens() == [END]
