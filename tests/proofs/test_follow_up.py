"""Work on a study goes on: arms, seeds and tasks are added later, and only what is new runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store.layout import Folder
from tests.proofs.ablate import ablate, plan_of, updates
from tests.proofs.small import write_small

BATCH = 256
TRUNK, DECAY = 7680 // BATCH, 6400 // BATCH  # updates


def steps(folder: Path) -> int:
    """Updates that were computed in the folder, every attempt counted."""
    return sum(updates(folder).values())


def results(folder: Path) -> int:
    return len(list(Folder(folder).evals.glob("*/*/DONE.json")))


def changed(study: Path, old: str, new: str) -> Path:
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    return study


@pytest.mark.slow
def test_an_arm_a_seed_and_a_task_that_are_added_cost_what_is_new_and_taken_away_cost_nothing(
    tmp_path: Path, cache: Path
) -> None:
    study, out = changed(write_small(tmp_path), "max_length: 64", "max_length: 256"), tmp_path / "out"
    ablate(cache, "run", study, "-o", out)
    assert steps(out) == TRUNK + 2 * DECAY
    assert results(out) == 2 * 3  # two arms; two held-out sources, and continuations

    changed(study, "values: [0.3]", "values: [0.3, 0.4]")
    ablate(cache, "run", study, "-o", out)
    assert steps(out) == TRUNK + 3 * DECAY
    assert results(out) == 3 * 3

    changed(study, "seeds: {data: [1]}", "seeds: {data: [1, 2]}")
    ablate(cache, "run", study, "-o", out)
    assert steps(out) == 2 * (TRUNK + 3 * DECAY)
    assert results(out) == 6 * 2 + 3  # continuations are of the first seed

    changed(study, "eval: {at: [end]", "eval: {at: [end], suites: [smoke@1]")
    ablate(cache, "run", study, "-o", out)
    assert steps(out) == 2 * (TRUNK + 3 * DECAY)
    tasks = {task["task"] for task in plan_of(out)["tasks"]}
    assert len(tasks) > 3 and results(out) == 6 * (len(tasks) - 1) + 3

    changed(study, "values: [0.3, 0.4]", "values: [0.3]")
    changed(study, "seeds: {data: [1, 2]}", "seeds: {data: [1]}")
    changed(study, "eval: {at: [end], suites: [smoke@1]", "eval: {at: [end]")
    said = ablate(cache, "run", study, "-o", out)
    assert "trained 0 tokens, evaluated 0 states" in said
    assert steps(out) == 2 * (TRUNK + 3 * DECAY) and results(out) == 6 * (len(tasks) - 1) + 3
    shown = ablate(cache, "plan", study, "-o", out)
    assert "orphans: 5 states in the folder belong to no arm" in shown  # a decay of seed 1, the whole of seed 2
    assert len(plan_of(out)["runs"]) == 2


CONTROLS = """\
controls:
  - {name: aa, same_as: default, seeds: {data: [4, 5]}}
  - {name: published, reproduce: {metric: bpb.sums, value: VALUE, tolerance: 0.5}}
"""


@pytest.mark.slow
def test_an_aa_control_of_real_training_passes_and_a_number_that_is_wrong_holds_what_is_left(
    tmp_path: Path, cache: Path
) -> None:
    study, out = changed(write_small(tmp_path), "data: [1]", "data: [1, 2]"), tmp_path / "out"
    plain = study.read_text()
    study.write_text(plain + CONTROLS.replace("VALUE", "99.0"))
    said = " ".join(ablate(cache, "run", study, "-o", out, code=1).split())
    assert "control `published`: bpb.sums of `default` at `end` is" in said and "expected 99 ± 0.5: off by" in said
    assert "`compare.allow: {published: [control-failed]}`" in said
    assert steps(out) == 4 * (TRUNK + DECAY)
    held = [line for line in ablate(cache, "status", out).splitlines() if line.startswith("more=0.3")]
    assert len(held) == 2 and all("held control" in line for line in held)
    assert (out / "report" / "index.html").exists()

    study.write_text(plain + CONTROLS.replace("VALUE", "2.8"))
    said = ablate(cache, "run", study, "-o", out)
    assert steps(out) == 4 * (TRUNK + DECAY) + 2 * DECAY
    assert plan_of(out)["held"] == []
    again = ablate(cache, "run", study, "-o", out)
    assert "trained 0 tokens, evaluated 0 states; 6 runs: 6 done" in again
