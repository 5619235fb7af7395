from __future__ import annotations

from pathlib import Path

import pytest

from harness import cli
from harness.store import atomic
from tests.proofs.ablate import ablate, write_study
from tests.proofs.small import Finished, write_small


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The small study after one run in this process, with a token store of its own. Tests copy it, or put back what
    they change."""
    root = tmp_path_factory.mktemp("finished")
    written: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        patch.setattr(atomic, "before_write", written.append)
        assert cli.call(["run", str(write_small(root)), "-o", str(root / "out"), "--executor", "debug"]) == 0
    # (A tokenizer is trained in the system's folder for temporary files first.)
    return Finished(root, [path for path in written if path.is_relative_to(root)])
