"""The speed benches measure what they say: sizes that fit, medians over rounds, the peer on the same work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.study.errors import UserError
from harness.train import bench_train as bench
from harness.train.bench_train import Beside, bench_fit, fit, save, text
from harness.train.measure import Setting, measure
from harness.train.shapes import SHAPES, shape_config

TINY = Setting(model="10M", context=64, batch=512, device="cpu", updates=2, warmup=1)


def _measured(setting: Setting, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "tokens_per_second": setting.batch / seconds,
        "update_seconds": seconds,
        "seconds": [seconds] * setting.updates,
        "losses": [9.7, 9.6, 9.5],
        "loader_share": 0.01,
        "look_share": 0.02,
        "ran": {"kernels": "torch"},
        "peak_bytes": 1 << 30,
        "numerics": {"processor": "NVIDIA H100 80GB HBM3", "torch": "2.11.0"},
        **more,
    }


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """Measurements that are made up: memory ends above 256 tokens a forward, 128 are fastest."""
    seen: list[Setting] = []

    def run(setting: Setting) -> dict[str, Any]:
        seen.append(setting)
        size = setting.micro_batch or setting.batch
        if size > 256 and not setting.trainer:
            return {"oom": True}
        return _measured(setting, 1.0 + abs(size - 128) / 1000 + (0.5 if setting.trainer else 0.0))

    monkeypatch.setattr(bench, "run", run)
    return seen


def test_fit_shrinks_until_it_fits_and_smaller_is_slower(stub: list[Setting]) -> None:
    speed, chosen = fit(TINY, lambda line: None)
    assert [setting.micro_batch for setting in stub] == [512, 256, 128, 64]
    assert chosen.micro_batch == 128 and chosen.activation_checkpointing == "off" and speed == pytest.approx(512)


def test_where_no_row_fits_activations_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = {"full"}
    monkeypatch.setattr(
        bench, "run", lambda s: _measured(s, 1.0) if s.activation_checkpointing in fits else {"oom": True}
    )
    assert fit(TINY, lambda line: None)[1].activation_checkpointing == "full"
    fits.clear()
    with pytest.raises(UserError, match="not one row of 64 tokens of 10M fits"):
        fit(TINY, lambda line: None)


def test_recomputation_that_the_kernels_refuse_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only `full` fits: Liger's rope does not go with `selective`, and the bench goes on to `full`."""
    tried = []

    def run(setting: Setting) -> dict[str, Any]:
        tried.append(setting.activation_checkpointing)
        return _measured(setting, 1.0) if setting.activation_checkpointing == "full" else {"oom": True}

    def resolve(asked: Any, config: Any, device: str, compiled: bool, recomputed: str) -> None:
        if asked == "liger" and recomputed == "selective":
            raise UserError("rotated twice")

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "resolve", resolve)
    one_row = replace(TINY, context=512)
    assert fit(replace(one_row, kernels="liger"), lambda line: None)[1].activation_checkpointing == "full"
    assert tried == ["off", "full"]
    found = bench.bench_train(one_row, ["torch", "liger"], 1, Beside(best=True), lambda line: None)
    rows = {row["name"]: row["activation_checkpointing"] for row in found["rows"]}
    assert rows == dict.fromkeys(["torch", "liger", "torch at its best", "liger at its best"], "full")


def test_a_variant_that_fails_is_left_out_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(setting: Setting) -> dict[str, Any]:
        if setting.kernels != "torch":
            raise UserError("measuring 10M failed: RuntimeError: no kernel")
        return _measured(setting, 1.0)

    monkeypatch.setattr(bench, "run", run)
    found = bench.bench_train(TINY, ["torch", "chunked"], 2, Beside(trainer=True), lambda line: None)
    assert [row["name"] for row in found["rows"]] == ["torch"] and "no kernel" in found["left_out"]["chunked"]
    assert "left out: chunked" in text(found)
    with pytest.raises(UserError, match="nothing could be measured"):
        bench.bench_train(TINY, ["chunked"], 1, Beside(), lambda line: None)


def test_rows_of_one_setting_are_measured_once(stub: list[Setting]) -> None:
    """At equal micro-batch, and at its own best one where that is the same."""
    found = bench.bench_train(TINY, ["torch"], 1, Beside(best=True), lambda line: None)
    assert sum(setting.witness for setting in stub) == 1
    assert [row["name"] for row in found["rows"]] == ["torch", "torch at its best"]
    assert found["rows"][0]["tokens_per_second"] == found["rows"][1]["tokens_per_second"]


def test_a_failure_names_the_error_and_not_what_a_compiler_says_after_it() -> None:
    said = "Traceback\n  File x\ntorch._inductor.exc.InductorError: LoweringException: at least 16\n\nSet TORCHDYNAMO"
    assert bench._error(said).startswith("torch._inductor.exc.InductorError") and bench._error("") == "no word"


def test_fit_prints_a_block_that_a_study_takes(stub: list[Setting]) -> None:
    from ruamel.yaml import YAML

    from harness.study.schema.execution import LaunchSpec

    found = bench_fit(TINY, ["chunked"], lambda line: None)
    block = YAML(typ="safe").load(bench.fit_text(found).splitlines()[-1])["launch"]
    launch = LaunchSpec.model_validate(block)
    assert launch.micro_batch == 128 and launch.kernels.fused_linear_cross_entropy == "chunked"


def test_rounds_alternate_and_figures_are_of_all_of_them(stub: list[Setting]) -> None:
    found = bench.bench_train(
        replace(TINY, micro_batch=128),
        ["torch", "chunked"],
        2,
        Beside(trainer=True),
        lambda line: None,
    )
    order = [(setting.kernels == "torch", setting.trainer) for setting in stub]
    assert order[:3] == order[:2:-1], "the second round runs backwards"
    assert found["trainer"]["times_faster"] == {"torch": pytest.approx(1.5), "chunked": pytest.approx(1.5)}
    assert found["trainer"]["largest_relative_difference"] == {"torch": 0.0, "chunked": 0.0}
    row = found["rows"][0]
    assert row["mfu_full"] > row["mfu_causal"] > 0 and found["peak_flops"] == 989e12
    assert all(len(line) <= 80 for line in text(found).splitlines()[:-1])


def test_mfu_is_none_where_it_would_be_wrong(stub: list[Setting]) -> None:
    """Documents in a row attend to less than the formula says; a device that nobody knows has no peak."""
    masked = replace(TINY, micro_batch=128, documents="masked")
    row = bench.bench_train(masked, ["torch"], 1, Beside(), lambda line: None)["rows"][0]
    assert row["mfu_full"] is None and row["tflops"] is None
    assert bench._peak("AMD EPYC") is None and bench._peak("NVIDIA H100 PCIe") == 756e12


def test_a_bench_takes_the_place_of_the_same_one_before(stub: list[Setting], tmp_path: Path) -> None:
    found = bench.bench_train(replace(TINY, micro_batch=128), ["torch"], 1, Beside(), lambda line: None)
    path = save(found, tmp_path)
    save({**found, "rounds": 5}, tmp_path)
    save({**found, "model": "another"}, tmp_path)
    kept = json.loads(path.read_text())
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    assert [(one["model"], one["rounds"]) for one in kept["benches"]] == [("10M", 5), ("another", 1)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "11M", "--context", "64"], "is no folder or .gguf file here and no shape; did you mean `10M`"),
        (["--model", "10M", "--context", "64", "--batch", "100"], "no whole number of rows of 64"),
        (["--model", "10M", "--context", "64", "--batch", "256", "--micro-batch", "192"], "must divide 256"),
        (["--model", "10M", "--context", "64", "--kernels", "triton"], "`--kernels triton` is not known"),
        (["--model", "10M", "--context", "64", "--kernels", "liger", "--device", "cpu"], "Liger needs a GPU"),
    ],
)
def test_a_wrong_call_is_one_paragraph(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.call(["bench", "train", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "millions"), [("10M", 10.0), ("SmolLM2-135M", 134.5), ("Qwen3-0.6B", 596.0), ("Llama-3.2-1B", 1235.8)]
)
def test_shapes_have_the_sizes_that_their_names_say(name: str, millions: float) -> None:
    from harness.train.model import shape_of

    assert shape_of(shape_config(name, 4096)).total / 1e6 == pytest.approx(millions, rel=2e-3)
    assert name in SHAPES


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["joined", "masked"])
def test_the_first_20_losses_are_the_trainers_to_rounding(documents: Any) -> None:
    """The same weights, rows, optimizer and clipping in fp32, in two processes."""
    setting = replace(TINY, batch=256, updates=18, warmup=2, documents=documents, kernels="torch")
    ours = bench.run(setting)["losses"]
    theirs = bench.run(replace(setting, trainer=True))["losses"]
    assert len(ours) == len(theirs) == 20
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_measurement_says_what_it_ran_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.train.measure.set_threads", lambda numerics: None)
    found = measure(replace(TINY, batch=128, sources=2, kernels="auto"))
    assert len(found["seconds"]) == 2 and len(found["losses"]) == 3
    assert found["ran"]["kernels"] == "torch" and 0 <= found["loader_share"] < 1
    assert found["peak_bytes"] > 0 and found["tokens_per_second"] > 0
