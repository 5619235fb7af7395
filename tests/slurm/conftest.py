"""One cluster for a test process, with all its nodes up and its queue empty before every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster as slurm
from tests.slurm.cluster import NODES, Cluster

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = slurm.missing()
    reason = f"Slurm and munge are not installed ({', '.join(lacking)}): apt-get install slurm-wlm munge"
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slurm)
            if lacking and "ABLATE_CI" not in os.environ:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm.running(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, as the machine's own: its configuration is in the environment."""
    use(_cluster, monkeypatch)
    yield _cluster
    _cluster.clear()


def use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a cluster the one that the clients talk to, and the tests' trainers ones that its jobs can import."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    stubs = [str(REPOSITORY / "tests" / name) for name in ("launch", "slurm")]
    for stub in stubs:
        monkeypatch.syspath_prepend(stub)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*stubs, str(REPOSITORY)]))
    for node in NODES:
        if not cluster.node_runs(node):
            cluster.start_node(node)


@pytest.fixture(scope="session")
def token_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("token-store")


@pytest.fixture(autouse=True)
def own_cache(token_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(token_store))
