from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cli
from tests.track.wandb_server import KEY, WandbServer, wandb_server

STUDY = """\
schema: 1
study: tracked
base:
  model:
    config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources:
  sums: {builtin: arithmetic, documents: 200}
  more: {builtin: arithmetic, documents: 200, seed: 1}
train:
  batch_tokens: 256
  context: {length: 64}
  optimizer: {lr: 3.0e-3}
  mixture: {sums: 1.0}
stages:
  stable: {tokens: 2560, lr: {shape: constant, warmup: 256}}
  decay: {tokens: 2560, mixture: {sums: 0.5, more: 0.5}, lr: {shape: linear, to: 0}}
ablate:
  - mixture: {stage: decay, vary: more, values: [0.3], absorb: sums}
seeds: {data: [1]}
compare: {control: default, primary: [bpb.sums]}
eval: {at: [stable, end], max_length: 64, held_out: {window: 64, documents: 4}}
launch: {jobs: 1, checkpoint_every: 1024}
"""
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
