"""The order of documents as the training loop received them, token by token, through every segment of every run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data.loader import Batch, Loader
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from harness.store.layout import Folder
from harness.store.manifests import read_base, read_source
from harness.train import prepare as beginning
from harness.train import segment as training
from tests.proofs.ablate import STUDY, plan_of, write_study

SHORT = STUDY.replace("total: ~60k", "total: ~40k").replace("data: [1, 2]", "data: [1]")
SHORT = SHORT.replace("documents: 120", "documents: 5")  # so that the path goes through its pool more than once
ARMS = ("default", "mix", "long", "decay.tokens=10k", "decay.tokens=15k")

Rows = Mapping[str, list[tuple[str, np.ndarray]]]


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A finished study, and for each segment every row with its source, as the loop took them."""
    log: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    at: list[str] = []

    class Recorded(Loader):
        def next(self) -> Batch:
            batch = super().next()
            log[at[-1]] += [
                (self.source_names[source], row.copy())
                for source, row in zip(batch.source, batch.input_ids, strict=True)
            ]
            return batch

    root = tmp_path_factory.mktemp("order")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(root / "cache"))
        prepare = training.prepare

        def named(folder: Any, segment: Mapping[str, Any], *rest: Any) -> Any:
            at.append(segment["id"])
            return prepare(folder, segment, *rest)

        patch.setattr(training, "prepare", named)
        patch.setattr(beginning, "Loader", Recorded)
        done = run(Options(write_study(root, SHORT), root / "out", executor="debug"), Silent())
    assert done.ended.exit_code == 0
    return root / "out", log


def stream(received: tuple[Path, Rows], arm: str, source: str) -> np.ndarray:
    """All tokens of a source that a run was trained on, in their order."""
    folder, log = received
    path = next(entry["path"] for entry in plan_of(folder)["runs"] if entry["arm"] == arm)
    return np.concatenate([row for name in path for drawn, row in log[name] if drawn == source])


def test_arms_that_drew_n_tokens_of_a_source_drew_the_same_ones(received: tuple[Path, Rows]) -> None:
    for source in ("web", "math"):
        streams = [stream(received, arm, source) for arm in ARMS]
        longest = max(streams, key=len)
        for tokens in streams:
            assert np.array_equal(tokens, longest[: len(tokens)])
        assert len({len(tokens) for tokens in streams}) > 1  # the arms did ask for different amounts


def test_nothing_repeats_before_the_pool_is_used_up_and_nothing_is_skipped(received: tuple[Path, Rows]) -> None:
    folder = Folder(received[0])
    base, web = read_base(folder), read_source(folder, "web")
    assert base is not None and web is not None
    tokens = stream(received, "default", "web")
    ends = np.flatnonzero(tokens == base["tokenizer"]["eos_token_id"]) + 1
    documents = [part.tobytes() for part in np.split(tokens, ends)[:-1]]  # whole ones; the last may be cut
    pool = web["train"]["documents"]
    assert len(documents) >= 2 * pool, "the pool was used up twice"
    epochs = [documents[first : first + pool] for first in range(0, len(documents) - pool + 1, pool)]
    assert all(len(set(epoch)) == pool for epoch in epochs)
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1]  # each epoch is a permutation of its own
