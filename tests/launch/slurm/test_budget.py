"""What is left of a study, in GPU-hours, at the speed that it has shown itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.launch import prepare
from harness.launch.slurm import budget
from harness.store import attempts
from harness.store.atomic import append_json_line
from harness.store.layout import Folder


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 8), ("cpu", 1)])
def test_a_segments_speed_is_shared_out_among_the_gpus_that_it_had_itself(
    unscored: Path, device: str, gpus: int
) -> None:
    """Whatever the launch section asks for now: what is left may be trained on one."""
    folder = Folder(unscored.parent / "results")
    plan = prepare.planned(prepare.load(unscored), folder).plan
    segment = next(segment for segment in plan.segments.values() if segment.kind == "train")
    attempt = attempts.begin(folder.state(segment.id), {"numerics": {"device": device, "world": 8}})
    append_json_line(attempt.folder / "metrics.jsonl", {"tokens": 256, "tokens_per_second": 8000.0})
    plan.segments[segment.id] = replace(segment, flops=6e12)
    per_token = 6e12 / (segment.tokens_to - segment.tokens_from)
    found = budget.speed(plan, folder)
    assert found.flops == pytest.approx(8000 * per_token / gpus) and "measured" in found.basis
