"""Kernels that can never run beside what else `launch` says are refused; all others are taken."""

from __future__ import annotations

import pytest

from harness.study.checks import check_kernels
from harness.study.errors import Mistake
from harness.study.schema.execution import LaunchSpec

LOSS = {"fused_linear_cross_entropy": "liger"}


def check(**launch: object) -> None:
    check_kernels(LaunchSpec.model_validate(launch))


@pytest.mark.parametrize(
    "launch",
    [
        {"kernels": "liger"},
        {"kernels": "auto", "device": "cpu", "compile": True, "activation_checkpointing": "selective"},
        {"kernels": {"fused_linear_cross_entropy": "chunked"}, "device": "cpu"},
        {"kernels": LOSS, "compile": True, "activation_checkpointing": "selective"},
        {"kernels": {"rope": "liger"}, "compile": True, "activation_checkpointing": "selective"},
        {"kernels": "liger", "activation_checkpointing": "full"},
    ],
)
def test_kernels_that_may_run_somewhere_are_taken(launch: dict[str, object]) -> None:
    check(**launch)


@pytest.mark.parametrize("kernels", ["liger", {"rms_norm": "liger"}])
def test_the_norm_of_liger_is_refused_under_compilation(kernels: object) -> None:
    with pytest.raises(Mistake, match=r"deviate.*expected"):
        check(kernels=kernels, compile=True)


@pytest.mark.parametrize("kernels", ["liger", {"rope": "liger"}])
def test_a_rotation_in_place_is_refused_where_it_would_be_computed_again(kernels: object) -> None:
    with pytest.raises(Mistake, match=r"rotates in place.*expected"):
        check(kernels=kernels, activation_checkpointing="selective")


def test_the_interpreter_lets_the_fused_loss_alone_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Mistake, match=r"needs a GPU.*expected torch, chunked"):
        check(kernels=LOSS, device="cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check(kernels=LOSS, device="cpu")
    with pytest.raises(Mistake, match="needs a GPU"):
        check(kernels="liger", device="cpu")
