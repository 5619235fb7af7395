"""The keys of `launch` that are for a cluster: what this machine cannot do is refused, what it needs not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch import run
from harness.launch.limits import check_here
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.study.errors import UserError
from harness.study.schema.execution import LaunchSpec


@pytest.mark.parametrize("key", ["nodes", "gpus"])
def test_a_run_on_several_machines_or_gpus_is_refused_before_anything_is_made(scored: Path, key: str) -> None:
    folder = scored.parent / "nothing"
    asked = Options(scored, folder, (f"launch.{key}=2",), executor="debug", perform="stub_work:perform")
    with pytest.raises(UserError, match=rf"launch\.{key} is 2.*--set launch\.{key}=1"):
        run.run(asked, Silent())
    assert not folder.exists()


@pytest.mark.parametrize("gpus, more", [(1, "To train in one process"), (4, "--set launch.gpus=1")])
def test_a_strategy_for_several_processes_is_refused_where_there_is_one(gpus: int, more: str) -> None:
    launch = LaunchSpec.model_validate({"gpus": gpus, "strategy": "fsdp"})
    with pytest.raises(UserError, match=rf"{more}.*--set launch\.strategy=auto"):
        check_here(launch)


def test_what_only_a_cluster_needs_is_named_in_one_line() -> None:
    spec = LaunchSpec.model_validate({"time": "1h30m", "parallel": 8, "nodes": 1, "gpus": 1})
    assert spec.time == 5400
    line = check_here(spec)
    assert line is not None and "launch.time and launch.parallel" in line and "\n" not in line
    assert check_here(LaunchSpec()) is None


@pytest.mark.parametrize("text", ["12", "", "0h", "1.5h", 12, "h", "1m1h"])
def test_a_time_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="such as 12h"):
        LaunchSpec.model_validate({"time": text})
