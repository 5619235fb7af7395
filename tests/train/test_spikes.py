"""Updates that are spikes are left out, by a window that a checkpoint keeps: wherever a path is cut, the same ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.store import states
from harness.store.atomic import read_json_lines
from harness.store.metrics import read_steps
from harness.study.errors import UserError
from harness.train.average import WeightAverage
from harness.train.loop import Loop
from harness.train.optimizer import optimizer_tensors, trained_parameters
from harness.train.spikes import SpikeWindow
from tests.train import build
from tests.train.build import BATCH, StudyFolder
from tests.train.test_optimizer import SCIENCES
from tests.train.test_ranks import together
from tests.train.test_resume import MOMENTS, Child

CPU = torch.device("cpu")
STEPS = 20
END = STEPS * BATCH
JUMP = 9  # the update whose rate spoils the weights; the one after it meets a loss that no update before it had
WINDOW = {"window": 8, "sigma": 6.0}


def path(optimizer: Mapping[str, Any] | None = None, skip: Any = WINDOW, jump: float = 1.0) -> list[dict[str, Any]]:
    """A constant rate, one update at a rate that is far too high, and the constant rate again."""
    own = {**(optimizer or build.science()["optimizer"]), **({} if skip is None else {"skip_spikes": skip})}
    pieces = [
        build.piece(0, (JUMP - 1) * BATCH),
        build.piece((JUMP - 1) * BATCH, JUMP * BATCH, lr=jump),
        build.piece(JUMP * BATCH, END),
    ]
    for piece in pieces:
        piece["science"]["optimizer"] = own
    return pieces


def expected(rows: Sequence[Mapping[str, Any]], window: int, sigma: float) -> list[int]:
    """The steps that OLMo-core's rule leaves out, from the recorded losses and norms."""
    found = []
    for index, row in enumerate(rows):
        before = rows[max(0, index - window) : index]
        if len(before) >= max(2, window // 2):
            for name in ("loss", "grad_norm"):
                seen = np.array([one[name] for one in before])
                if row[name] - seen.mean() > sigma * seen.std(ddof=1):
                    found.append(row["step"])
                    break
    return found


def skipped(study: StudyFolder, name: str) -> list[int]:
    steps = read_steps(study.state(name))
    assert steps.disagreements == []
    return [row["step"] for row in steps.rows if row.get("skipped")]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    torch.set_num_threads(1)
    study = StudyFolder(tmp_path_factory.mktemp("uncut"))
    (name,) = study.declare(path(), [END])
    assert study.train(name, checkpoint_every=4 * BATCH, keep="all").steps == STEPS
    return study, name


def test_the_updates_after_a_planted_jump_are_left_out_by_the_published_rule(uncut: tuple[StudyFolder, str]) -> None:
    study, name = uncut
    rows = read_steps(study.state(name)).rows
    left_out = skipped(study, name)
    assert JUMP + 1 in left_out and JUMP not in left_out and len(left_out) < STEPS - JUMP
    assert left_out == expected(rows, **WINDOW)
    assert all("skipped" not in row for row in rows if row["step"] not in left_out)
    done = states.read_done(study.state(name))
    assert done is not None and done.summary["skipped"] == len(left_out)


def test_a_path_without_spikes_trains_as_one_that_looks_for_none(tmp_path: Path) -> None:
    weights = []
    for skip in (WINDOW, None):
        study = StudyFolder(tmp_path / str(skip is None))
        (name,) = study.declare(path(skip=skip, jump=1e-2), [END])
        study.train(name)
        assert skipped(study, name) == []
        weights.append(study.hashes(name))
        done = states.read_done(study.state(name))
        assert done is not None and done.summary.get("skipped") == (0 if skip else None)
    assert weights[0].pop("spikes.safetensors") and weights[0] == weights[1]


@pytest.mark.parametrize("optimizer", SCIENCES)
def test_an_update_that_is_left_out_changes_no_weight_no_state_and_no_average(optimizer: str) -> None:
    pieces = path(SCIENCES[optimizer], jump=300.0 if optimizer == "sgd" else 1.0)
    loop = build.loop(pieces)
    loop.spikes, loop.average = SpikeWindow(8, 6.0, CPU), WeightAverage(loop.model, 0.9)

    def everything() -> list[torch.Tensor]:
        assert loop.average is not None
        kept = [*optimizer_tensors(loop.model, loop.optimizer).values(), *loop.average.tensors().values()]
        return [value.detach().clone() for value in (*(p for _, p in trained_parameters(loop.model)), *kept)]

    found = []
    for _ in range(STEPS):
        before, tokens = everything(), loop.tokens
        loop.update()
        (update,) = loop.look()
        found.append(update.skipped)
        same = [torch.equal(a, b) for a, b in zip(before, everything(), strict=False)]
        assert update.finite and loop.tokens == tokens + BATCH
        assert all(same) if update.skipped else not any(same[: len(trained_parameters(loop.model))])
    assert any(found) and not all(found[JUMP:])


@pytest.mark.parametrize("cuts", [[3, 20], [8, 9, 20], [5, 10, 12, 20]])
def test_cuts_inside_the_window_and_beside_a_spike_change_no_bit(
    cuts: list[int], uncut: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    names = study.declare(path(), [cut * BATCH for cut in cuts])
    for name in names:
        study.train(name)
    assert study.hashes(names[-1]) == uncut[0].hashes(uncut[1])
    assert [step for name in names for step in skipped(study, name)] == skipped(*uncut)
    done = states.read_done(study.state(names[-1]))
    assert done is not None and done.summary["skipped"] == len(skipped(*uncut)), "counted over the path"


@pytest.mark.parametrize("moment", ["in an update after a checkpoint", "after it is renamed"])
def test_a_kill_across_a_spike_changes_neither_weights_nor_skips(
    moment: str, uncut: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    prepare, at = MOMENTS[moment]
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    assert Child(study, name, prepare=prepare).wait() == -signal.SIGKILL
    study.train(name, checkpoint_every=4 * BATCH, keep="all")
    started = [e["tokens"] for e in read_json_lines(study.state(name).events) if e["kind"] == "attempt_started"]
    assert started == [0, at * BATCH]
    assert study.hashes(name) == uncut[0].hashes(uncut[1]) and skipped(study, name) == skipped(*uncut)


def test_a_kill_between_a_spike_and_its_checkpoint_is_taken_up_with_the_window_before_it(
    uncut: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    """And a window that was forgotten would show: the same steps would not be left out."""

    def die_after_the_spike() -> None:
        plain, count = Loop.update, [0]

        def update(loop: Loop) -> None:
            plain(loop)
            count[0] += 1
            if count[0] == JUMP + 2:
                os.kill(os.getpid(), signal.SIGKILL)

        Loop.update = update  # type: ignore[method-assign]

    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    assert Child(study, name, prepare=die_after_the_spike).wait() == -signal.SIGKILL
    study.train(name, checkpoint_every=4 * BATCH)
    assert study.hashes(name) == uncut[0].hashes(uncut[1]) and skipped(study, name) == skipped(*uncut)
    forgot = read_steps(uncut[0].state(uncut[1])).rows[8:]
    assert expected(forgot, **WINDOW) != [step for step in skipped(*uncut) if step > 8]


def test_a_new_stage_goes_on_with_the_window_unless_its_rule_is_another(tmp_path: Path) -> None:
    adamw = build.science()["optimizer"]
    for other, seen in ((WINDOW, STEPS), ({**WINDOW, "sigma": 5.0}, STEPS - 8), ({**WINDOW, "window": 6}, STEPS - 8)):
        study = StudyFolder(tmp_path / str(other))
        pieces = [build.piece(0, 8 * BATCH), build.piece(8 * BATCH, END, "decay")]
        for piece, skip in zip(pieces, (WINDOW, other), strict=True):
            piece["science"]["optimizer"] = {**adamw, "skip_spikes": skip}
        first, second = study.declare(pieces, [8 * BATCH, END])
        study.train(first)
        study.train(second)
        kept = load_file(study.state(second).checkpoint(END) / "spikes.safetensors")
        assert int(kept["seen"]) == seen and kept["figures"].shape == (2, other["window"])
        (event,) = [e for e in read_json_lines(study.state(second).events) if e["kind"] == "stage_switched"]
        assert event["spikes"] == ("carried" if seen == STEPS else "begins")


def test_two_ranks_leave_out_the_same_updates(uncut: tuple[StudyFolder, str], tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    assert [one["kind"] for one in together(study, name, 2)] == ["trained", "trained"]
    assert skipped(study, name) == skipped(*uncut)


def test_divergence_is_no_spike_and_stays(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(jump=1e38), [END])
    outcome = study.train(name, checkpoint_every=4 * BATCH)
    assert outcome.kind == "diverged" and outcome.tokens == JUMP * BATCH
    assert skipped(study, name) == []


def _see(window: SpikeWindow, loss: float, norm: float = 1.0, broken: float = 0.0) -> float:
    return float(window.see(torch.tensor(loss), torch.tensor(norm), torch.tensor(broken)))


def test_nothing_is_a_spike_before_half_a_window_and_two_updates() -> None:
    for length, first in ((8, 4), (2, 2), (3, 2)):
        window = SpikeWindow(length, 1.0, CPU)
        assert [_see(window, loss) for loss in (1.0, 1.5, 1.0, 1.5)[:first]] == [0.0] * first
        assert _see(window, 100.0) == 1.0


def test_a_norm_alone_is_a_spike_and_a_low_loss_is_none() -> None:
    window = SpikeWindow(4, 6.0, CPU)
    for loss in (1.0, 1.1, 1.0, 1.1):
        assert _see(window, loss, 2 * loss) == 0.0
    assert _see(window, 0.0, 0.0) == 0.0
    assert _see(window, 1.0, 50.0) == 1.0
    assert window.skipped == 1


def test_a_broken_update_never_enters_the_window() -> None:
    window = SpikeWindow(4, 6.0, CPU)
    for loss in (1.0, 1.1, 1.0):
        _see(window, loss)
    before = {name: value.clone() for name, value in window.tensors().items()}
    assert _see(window, float("nan"), float("inf"), broken=1.0) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in window.tensors().items())


def test_a_window_of_another_length_or_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.skip_spikes"):
        SpikeWindow(8, 6.0, CPU).load(SpikeWindow(4, 6.0, CPU).tensors())
