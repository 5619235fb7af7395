"""A new try changes execution only: micro-batch, memory, node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.launch import prepare
from harness.launch.slurm.classes import Verdict
from harness.launch.slurm.decide import Held
from harness.launch.slurm.remedies import Remedied, remedied
from harness.launch.slurm.tick import items
from harness.store.layout import Folder


@pytest.fixture
def prepared(scored: Path) -> prepare.Prepared:
    study = prepare.load(scored)
    return prepare.planned(study, Folder(scored.parent / "results"))


def given(prepared: prepare.Prepared, verdict: Verdict, micro: int | None = None, **parameters: Any) -> Any:
    item = next(item for item in items(prepared, True) if item.kind == "train")
    return remedied(item, verdict, parameters, micro, prepared.plan)


def test_without_failures_nothing_changes(prepared: prepare.Prepared) -> None:
    assert given(prepared, Verdict(), mem="4G") == Remedied({"mem": "4G"}, {})


def test_the_micro_batch_is_halved_in_whole_rows_until_one_is_left(prepared: prepare.Prepared) -> None:
    """Rows of 64 tokens, 4 in a batch."""
    assert given(prepared, Verdict(halvings=1)).remedy == {"micro_batch": 128}
    assert given(prepared, Verdict(halvings=2)).remedy == {"micro_batch": 64}
    assert given(prepared, Verdict(halvings=3)).kind == "oom_gpu"
    assert given(prepared, Verdict(halvings=1), 192).remedy == {"micro_batch": 64}


@pytest.mark.parametrize(("mem", "more"), [("4G", "6G"), ("1000", "1500"), ("3GB", "5G")])
def test_memory_is_raised_by_half(prepared: prepare.Prepared, mem: str, more: str) -> None:
    assert given(prepared, Verdict(memory=1), mem=mem).parameters["mem"] == more


@pytest.mark.parametrize("parameters", [{}, {"mem": "0"}, {"mem": "all"}])
def test_memory_that_cannot_be_raised_holds(prepared: prepare.Prepared, parameters: dict[str, Any]) -> None:
    found = given(prepared, Verdict(memory=1), **parameters)
    assert isinstance(found, Held) and found.kind == "oom_host"


def test_a_bad_node_is_avoided_beside_those_that_the_study_avoids(prepared: prepare.Prepared) -> None:
    assert given(prepared, Verdict(avoid=("n1", "n3"))).parameters["exclude"] == "n1,n3"
    assert given(prepared, Verdict(avoid=("n1",)), exclude="n9").parameters["exclude"] == "n9,n1"
