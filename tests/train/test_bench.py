"""The bench measures two loops that do the same work."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

from harness.data.loader import Loader
from harness.data.token_store import TokenSource
from harness.plan.cost import ModelShape
from harness.study.errors import UserError
from harness.train import bench
from harness.train.loop import Loop
from harness.train.numerics import Numerics
from harness.train.optimizer import build_optimizer
from tests.train import build

SMALL = {**bench.MODEL, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64}


@pytest.mark.parametrize("documents", ["masked", "joined"])
def test_both_loops_train_the_same_model_on_the_same_tokens_to_the_same_loss(documents: str, tmp_path: Path) -> None:
    """One long stream of documents cut into rows: over its first batches both see the same positions and labels."""
    tokens, offsets = bench.random_documents(64, 0, count=1)
    tokens, offsets = tokens.repeat(8), offsets * 8  # one document without an end inside the first batches
    rows, length = 2, 8
    fields = {"length": length, "documents": documents}
    pieces = [
        build.piece(0, 640, mixture={"words": "1"}, sources={"words": "x"}, batch_tokens=16, context=fields, lr=1e-3)
    ]
    model = build_model()
    science = pieces[0]["science"]
    ours = Loop(
        model,
        build_optimizer(model, science["optimizer"]),
        Loader(pieces, {"words": TokenSource("x", tokens, offsets)}),
        pieces,
        build.NUMERICS,
    )
    theirs = bench.bare_loop(build_model(), torch.from_numpy(tokens.astype("int64")), rows, length, False, False)
    mine = bench.harness_loop(tmp_path, ours, ModelShape(1, 1, 1, 1))
    for _ in range(2):
        assert next(mine) == pytest.approx(next(theirs), rel=1e-5)


def build_model() -> torch.nn.Module:
    from harness.train.model import build_model, config_from_fields

    return build_model(config_from_fields(SMALL), 1)


def test_the_bench_reports_a_ratio_and_the_bare_loop_s_source() -> None:
    result = bench.bench_loop(SMALL, rows=2, length=16, rounds=2)
    assert json.loads(json.dumps(result)) == result
    assert result["ratio"] == pytest.approx(result["step_ms"]["harness"] / result["step_ms"]["bare"])
    assert result["bare_source"] == inspect.getsource(bench.bare_loop)
    assert len(result["bare_source"].splitlines()) <= 60


def test_numerics_are_recorded_and_wrong_ones_refused() -> None:
    record = Numerics.resolve("cpu", threads=2, micro_batch=1024).record()
    assert (record["device"], record["threads"], record["micro_batch"], record["world"]) == ("cpu", 2, 1024, 1)
    assert record["torch"] == torch.__version__ and record["processor"] and record["kernels"] == "torch"
    with pytest.raises(UserError, match="valid here: auto, cpu, cuda"):
        Numerics.resolve("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="sees no CUDA device"):
            Numerics.resolve("cuda")
