"""SIGKILL everything, twice, after checkpoints were written; what comes out is what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.store.layout import Folder
from tests.proofs.ablate import STUDY, ablate, command, disagreements, environment, events, final_weights, write_study

LONGER = STUDY.replace("total: ~60k", "total: ~250k")

pytestmark = pytest.mark.slow


def start(cache: Path, study: Path, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("run", study, "-o", folder, "--yes"),
        env=environment(cache),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_checkpoints(process: subprocess.Popen[bytes], folder: Path, but: set[Path]) -> set[Path]:
    """Wait until a state at work has written a checkpoint that was not there before."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        for state in Folder(folder).all_states():
            here = {state.checkpoint(tokens) for tokens in state.checkpoint_tokens() if tokens > 0}
            if not state.done.exists() and here - but:
                return here
        time.sleep(0.002)
    raise AssertionError("the run ended before it could be killed in the middle")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_two_kills_leave_no_trace_in_the_weights(tmp_path: Path, cache: Path, sent: signal.Signals) -> None:
    study = write_study(tmp_path, LONGER)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    ablate(cache, "run", study, "-o", undisturbed, "--yes")
    seen: set[Path] = set()
    for _ in range(2):
        process = start(cache, study, disturbed)
        seen |= wait_for_checkpoints(process, disturbed, seen)
        if sent == signal.SIGKILL:
            os.killpg(process.pid, sent)  # controller and workers at once
        else:
            process.send_signal(sent)
        process.wait(timeout=60)
        assert process.returncode != 0
    ablate(cache, "run", study, "-o", disturbed, "--yes")
    assert final_weights(disturbed) == final_weights(undisturbed)
    assert disagreements(disturbed) == []
    assert resumed_inside(disturbed) >= 1


def test_a_kill_inside_a_window_of_best_fit_packing_leaves_no_trace_nor_does_sharing(
    tmp_path: Path, cache: Path
) -> None:
    """Arms part in the middle of a window: in another mixture, another row length, another seed."""
    text = LONGER.replace("context: {length: 128}", "context: {length: 128, packing: best-fit}")
    text = text.replace("seeds: {data: [1, 2]}", "seeds: {data: [1, 2], from: decay}")
    study = write_study(tmp_path, text)
    alone, disturbed = tmp_path / "alone", tmp_path / "disturbed"
    ablate(cache, "run", study, "-o", alone, "--yes", "--no-share")
    process = start(cache, study, disturbed)
    wait_for_checkpoints(process, disturbed, set())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    ablate(cache, "run", study, "-o", disturbed, "--yes")
    assert final_weights(disturbed) == final_weights(alone)
    assert len(set(final_weights(alone).values())) == len(final_weights(alone)), "every arm and seed trained otherwise"
    assert disagreements(disturbed) == []
    assert resumed_inside(disturbed) >= 1


def resumed_inside(folder: Path) -> int:
    """Attempts that began at a token inside their segment: what was killed came after a checkpoint."""
    count = 0
    for state in Folder(folder).all_states():
        started = [event["tokens"] for event in events(folder)[state.id] if event["kind"] == "attempt_started"]
        count += sum(tokens > started[0] for tokens in started[1:])
    return count
