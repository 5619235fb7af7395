"""The keys of `launch` that are for a cluster: what this machine cannot do is refused, what it needs not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch import look, run
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


@pytest.mark.parametrize("kernels", ["liger", {"rope": "liger"}, {"fused_linear_cross_entropy": "liger"}])
def test_kernels_of_liger_are_refused_where_it_is_not_installed_or_has_no_gpu(
    scored: Path, monkeypatch: pytest.MonkeyPatch, kernels: object
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    launch = LaunchSpec.model_validate({"kernels": kernels})
    monkeypatch.setattr(look, "importable", lambda module: False)
    with pytest.raises(UserError, match=r"liger-kernel is not installed here\. Use `pip install"):
        check_here(launch)
    monkeypatch.setattr(look, "importable", lambda module: True)
    with pytest.raises(UserError, match=r"needs a GPU, and there is none here\. Use `launch\.kernels: auto`"):
        check_here(launch)
    folder = scored.parent / "nothing"
    asked = Options(scored, folder, ("launch.kernels=liger",), executor="debug", perform="stub_work:perform")
    with pytest.raises(UserError, match="needs a GPU"):
        run.run(asked, Silent())
    assert not folder.exists()


@pytest.mark.parametrize("kernels", ["auto", "torch", {"fused_linear_cross_entropy": "chunked"}])
def test_kernels_that_ask_for_nothing_of_liger_need_nothing(monkeypatch: pytest.MonkeyPatch, kernels: object) -> None:
    monkeypatch.setattr(look, "importable", lambda module: False)
    assert check_here(LaunchSpec.model_validate({"kernels": kernels})) is None


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
