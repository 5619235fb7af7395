"""The averaged weights are exact: killed, unshared and cut runs end in the same average, and it is evaluated."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from harness.store import states
from harness.store.layout import Folder
from tests.proofs.ablate import STUDY, ablate, disagreements, plan_of, write_study
from tests.proofs.test_crash import resumed_inside, start, wait_for_checkpoints

AVERAGED = (
    STUDY.replace("optimizer: {lr: 2.0e-3}", "optimizer: {lr: 2.0e-3, ema: 0.95}")
    .replace("seeds: {data: [1, 2]}", "seeds: {data: [1]}\neval: {at: [end, ema], max_length: 128, held_out: HELD}")
    .replace("HELD", "{window: 128, documents: 4}")
)

pytestmark = pytest.mark.slow


def averages(folder: Path) -> dict[str, tuple[str, str]]:
    """Weights hash of the average and of the end of every run."""
    found = {}
    for run in plan_of(folder)["runs"]:
        points = {point["label"]: point["state"] for point in run["points"]}
        pair = [states.read_done(Folder(folder).state(points[label])) for label in ("ema", "end")]
        assert pair[0] is not None and pair[0].weights and pair[1] is not None and pair[1].weights, run["name"]
        found[run["name"]] = pair[0].weights, pair[1].weights
    return found


def test_killed_and_unshared_runs_end_in_the_same_averages(tmp_path: Path, cache: Path) -> None:
    study = write_study(tmp_path, AVERAGED.replace("total: ~60k", "total: ~110k"), "~10k")
    undisturbed, killed, unshared = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "unshared"
    ablate(cache, "run", study, "-o", undisturbed, "--yes")
    expected = averages(undisturbed)
    assert len(expected) == 4 and len({weights for pair in expected.values() for weights in pair}) == 8

    process = start(cache, study, killed)
    wait_for_checkpoints(process, killed, set())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    ablate(cache, "run", study, "-o", killed, "--yes")
    assert averages(killed) == expected
    assert resumed_inside(killed) >= 1 and disagreements(killed) == []

    ablate(cache, "run", study, "-o", unshared, "--yes", "--no-share")
    assert averages(unshared) == expected

    plan = json.loads(ablate(cache, "plan", study, "-o", undisturbed, "--json"))
    merges = [segment for segment in plan["segments"] if segment["kind"] == "merge"]
    assert len(merges) == 4 and not {segment["state"] for segment in merges} & {"new", "recomputed"}
    assert all(segment["tokens_from"] == segment["tokens_to"] and len(segment["parents"]) == 1 for segment in merges)
    assert {item["state"] for item in plan["evals"]} == {"reused"}
    assert (
        len(plan["evals"]) == 4 * 2 * 2 + 2 * 2
    )  # runs, points, sources; continuations of the first seed at both points
    assert "trained 0 tokens, evaluated 0 states" in ablate(cache, "run", study, "-o", undisturbed, "--yes")
    assert "0 damaged" in ablate(cache, "verify", undisturbed)
    assert "DIFFERENT" not in ablate(cache, "verify", undisturbed, "default/d1")
    ablate(cache, "export", undisturbed, "default/d1", tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").exists()
