"""Fabricated results folders, written once for a session; tests that change a folder make their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.report import build
from tests.analysis.fabricate import Design, fabricate

KILLED = Design(
    diverged=frozenset({"decay.lr.shape=constant/d2"}),
    missing=frozenset({"math=0.3/d3"}),
)


RICH = Design(
    not_worse={"quickstart.average": 0.05, "bpb.docs": 0.02},
    report_also="flops",
    every=True,
    ema=True,
    continuations=10,
    flops_per_token={"math=0.3": 1_800_000},
)


@pytest.fixture(scope="session", autouse=True)
def _without_fsync() -> Iterator[None]:
    """Durability is the store's affair and tested there; here it would only make hundreds of small files slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five arms × three seeds, all done."""
    return fabricate(tmp_path_factory.mktemp("whole") / "results", Design())


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one diverged run and one that never began; its report is built."""
    root = fabricate(tmp_path_factory.mktemp("killed") / "results", KILLED)
    build(root)
    return root


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that asks for everything that a report can show; its report is built."""
    root = fabricate(tmp_path_factory.mktemp("rich") / "results", RICH)
    build(root)
    return root


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of which nobody looks at the figures: drawing them takes most of the time."""
    monkeypatch.setattr("analysis.report._figures", lambda frame, scores: {})
