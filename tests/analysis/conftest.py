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
