"""Workers of one machine share out its GPUs, where there are several to choose from."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.launch.devices import least_used, to_share
from harness.launch.local import environment

TWO = ["NVIDIA H100, Disabled"] * 2


@pytest.mark.parametrize(
    ("device", "environ", "here", "shared"),
    [
        ("auto", {}, TWO, ["0", "1"]),
        ("cuda", {}, TWO, ["0", "1"]),
        ("cpu", {}, TWO, []),
        ("auto", {}, [], []),
        ("auto", {}, TWO[:1], []),
        ("auto", {}, ["NVIDIA H100, [N/A]", "NVIDIA T400, [N/A]"], []),
        ("auto", {}, ["NVIDIA H100, Enabled"] * 2, []),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3, GPU-7f,1"}, TWO, ["3", "GPU-7f", "1"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": "3"}, TWO, []),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, TWO, []),
        ("auto", {"CUDA_VISIBLE_DEVICES": "0,1,-1,2"}, TWO, ["0", "1"]),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0,1"}, TWO, []),
    ],
)
def test_gpus_are_shared_out_where_there_are_several_alike(
    device: str, environ: Mapping[str, str], here: list[str], shared: list[str]
) -> None:
    assert to_share(device, environ, lambda: here) == shared


def test_each_worker_gets_the_gpu_that_the_fewest_have() -> None:
    taken: list[str | None] = []
    for _ in range(5):
        taken.append(least_used(["3", "5"], taken))
    assert taken == ["3", "5", "3", "5", "3"]
    assert least_used(["3", "5"], ["5", "3", "5"]) == "3", "that of a worker that has died"
    assert least_used([], [None]) is None


def test_a_worker_sees_its_gpu_alone_and_what_this_process_sees_where_there_is_nothing_to_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert environment(1, "5")["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment(1)["CUDA_VISIBLE_DEVICES"] == "3,5"
