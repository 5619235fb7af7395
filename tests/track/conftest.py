from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli
from tests.proofs.small import SMALL
from tests.track.wandb_server import KEY, WandbServer, wandb_server

STUDY = (
    SMALL.replace("study: small", "study: tracked")
    .replace("STABLE", "2560")
    .replace("warmup: 2560", "warmup: 256")
    .replace("tokens: 6400", "tokens: 2560")
    .replace("at: [end]", "at: [stable, end]")
    .replace("checkpoint_every: 2560", "checkpoint_every: 1024")
    .replace("allow: {default: [no-control]}", "control: more=0.3")
)
UPDATES = 20  # of a run's path


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: a process that has imported Trackio keeps to the folder that it found then."""
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trackio_folder: Path) -> None:
    """Neither the login nor the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TRACKIO_DIR", str(trackio_folder))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`study.yaml` and `out`, its results without any tracker. Tests copy it."""
    root = tmp_path_factory.mktemp("tracked")
    (root / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        assert cli.call(["run", str(root / "study.yaml"), "-o", str(root / "out"), "--executor", "debug"]) == 0
    return root


@pytest.fixture
def study(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work on; results lie in `out` beside it."""
    monkeypatch.setenv("ABLATE_CACHE", str(trained / "cache"))
    shutil.copytree(trained / "out", tmp_path / "out")
    return Path(shutil.copy(trained / "study.yaml", tmp_path / "study.yaml"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
