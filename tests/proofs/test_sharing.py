"""Sharing changes nothing but the work: counted in updates, compared in weights; a study grows and shrinks for free."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.proofs.ablate import DECAYS, ablate, disagreements, events, final_weights, plan_of, updates, write_study

BATCH = 512

pytestmark = pytest.mark.slow


def test_weights_are_bit_identical_without_sharing_and_the_work_is_what_the_plans_say(
    tmp_path: Path, cache: Path, undisturbed: Path
) -> None:
    alone = tmp_path / "alone"
    ablate(cache, "run", write_study(tmp_path), "-o", alone, "--no-share", "--yes")
    assert final_weights(alone) == final_weights(undisturbed)
    assert len(set(final_weights(alone).values())) == len(final_weights(alone)) == 10

    totals = plan_of(undisturbed)["totals"]
    assert sum(updates(undisturbed).values()) == totals["tokens"] // BATCH
    assert sum(updates(alone).values()) == totals["tokens_unshared"] // BATCH
    assert totals["tokens_unshared"] > 2 * totals["tokens"]
    cuts = {s["tokens_to"] for s in plan_of(undisturbed)["segments"] if s["stage"] == "stable"}
    assert len(cuts) == 3  # the trunk is cut inside a stage


def test_the_run_does_what_the_plan_says_segment_by_segment(undisturbed: Path) -> None:
    plan, done = plan_of(undisturbed), events(undisturbed)
    for segment in plan["segments"]:
        steps = (segment["tokens_to"] - segment["tokens_from"]) // BATCH
        assert updates(undisturbed)[segment["id"]] == steps
        started = [event for event in done[segment["id"]] if event["kind"] == "attempt_started"]
        ended = [event for event in done[segment["id"]] if event["kind"] == "finished"]
        assert [event["tokens"] for event in started] == [segment["tokens_from"]]
        assert [event["tokens"] for event in ended] == [segment["tokens_to"]]
    assert disagreements(undisturbed) == []


def test_an_arm_that_branches_earlier_trains_only_its_own_part_and_taking_it_away_trains_nothing(
    tmp_path: Path, cache: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(undisturbed, folder)
    before, weights = updates(folder), final_weights(folder)
    more = write_study(tmp_path, decays=DECAYS + ", ~20k")
    printed = " ".join(ablate(cache, "plan", more, "-o", folder).split())
    assert "no checkpoint was kept at token" in printed
    planned = json.loads(ablate(cache, "plan", more, "-o", folder, "--json"))["totals"]["tokens_to_train"]
    ablate(cache, "run", more, "-o", folder, "--yes")
    after = updates(folder)
    assert final_weights(folder).items() >= weights.items()
    assert {name: after[name] for name in before} == before
    assert sum(after.values()) - sum(before.values()) == planned // BATCH
    # No earlier end was trained again: new states are the earlier cut of each seed's trunk and the decay after it.
    assert sorted(after[name] for name in set(after) - set(before)) == [39, 39, 78, 78]
    ablate(cache, "run", write_study(tmp_path), "-o", folder, "--yes")
    assert updates(folder) == after
