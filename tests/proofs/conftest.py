from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs.ablate import ablate, write_study


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token store for all studies of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The study's folder after one run that nothing disturbed. Tests copy it, they do not write to it."""
    root = tmp_path_factory.mktemp("undisturbed")
    ablate(cache, "run", write_study(root), "-o", root / "out", "--yes")
    return root / "out"
