"""The command line: what it refuses, what it says, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli

STUDY = """\
schema: 1
study: small
base:
  model: {config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                   num_attention_heads: 2}}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources:
  sums: {builtin: arithmetic, documents: 400}
train:
  batch_tokens: 256
  mixture: {sums: 1.0}
  context: {length: 64}
  optimizer: {name: adamw, lr: 3.0e-3}
stages:
  stable: {tokens: 2560, lr: {shape: constant, warmup: 512}}
  decay: {tokens: 2560, lr: {shape: linear, to: 0}}
ablate:
  - one_at_a_time: {stages.decay.lr.shape: [cosine]}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    return path


def test_the_parser_is_built_without_a_heavy_import() -> None:
    script = (
        "import sys; from harness import cli; cli.parser()\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'pydantic', 'numpy', 'ruamel.yaml', 'rich')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_planning_imports_neither_torch_nor_transformers_nor_lm_eval(study: Path) -> None:
    script = (
        "import sys; from harness import cli\n"
        f"assert cli.call(['plan', {str(study)!r}, '--json']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


LATE = (
    "ablate=[{{cases: {{late: {{stages.decay.lr: "
    "{{shape: linear, from: 1e-3, to: 0, warmup: 512, warmup_from: 2e-3}}}}}}}}]"
)
CPU = ("--set", "launch.device=cpu", "--set")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["rum", "{study}"], "did you mean `run`?"),
        (["plan"], "STUDY.yaml"),
        (["plan", "{folder}/nothing.yaml"], "there is no file"),
        (["plan", "{folder}"], "is a folder; expected a YAML file"),
        (["run", "{folder}"], "is a folder; expected a YAML file"),
        (["plan", "{study}", "--set", "stages.decay.tokens"], "expected PATH=VALUE"),
        (["plan", "{study}", "--set", "stages.decoy.tokens=512"], "decoy"),
        (["plan", "{study}", "--every", "2"], "--curves"),
        (["plan", "{study}", "--curves", "{folder}/none/curves.csv"], "cannot be written"),
        (["run", "{study}", "--jobs", "0"], "whole number from 1"),
        (["run", "{study}", "--jobs", "two"], "whole number from 1"),
        (["run", "{study}", "--executor", "cloud"], "`cloud` is not a value"),
        (["run", "{study}", "--executor", "debug", "--jobs", "2"], "no meaning"),
        (["run", "{study}", "--smoke", "--wait"], "leave `--wait` away"),
        (["run", "{study}", "--smoke", "--executor", "slurm"], "leave `--executor slurm` away"),
        (["bench", "fit", "--model", "10M", "--context", "64", "--micro-batch", "64"], "unrecognized arguments"),
        (["bench", "fit", "--model", "10M", "--context", "64", "--updates", "64"], "unrecognized arguments"),
        (["plan", "{study}", *CPU, "launch.resources=[{{gpu_type: h100}}]"], "no GPU is asked for"),
        (["plan", "{study}", *CPU, "launch.resources=[{{gpus: 1}}]"], "no GPU is asked for"),
        (["plan", "{study}", "--set", LATE], "in arm `late`, 0.002 is not below 0.001"),
        (["abort", "{folder}"], "`abort` is not a verb"),
        (["status", "{folder}"], "not a results folder"),
        (["status", "{folder}", "--watch", "--json"], "use one of them"),
        (["logs", "{folder}", "default/s1"], "not a results folder"),
        (["verify", "{folder}"], "not a results folder"),
        (["verify", "{folder}", "default/s1"], "not a results folder"),
        (["eval", "{folder}"], "not a results folder"),
        (["export", "{folder}", "default", "{folder}/out"], "not a results folder"),
        (["report", "{folder}"], "not a results folder"),
        (["compare", "{folder}", "a", "b"], "not a results folder"),
        (["bench", "lop"], "did you mean `loop`?"),
    ],
)
def test_a_wrong_call_is_one_paragraph_on_stderr_and_leaves_with_2(
    study: Path, call: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(study=study, folder=study.parent) for word in call]
    assert cli.call(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err and "Traceback" not in shown.err
    assert len(shown.err.strip().split("\n\n")) == 1


def test_the_installed_command_leaves_with_2_too(study: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "plan", str(study), "--set", "stages.decay.lr.shape=sine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "sine" in done.stderr and "Traceback" not in done.stderr


def test_plan_json_is_one_object_and_nothing_else(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["plan", str(study), "--json", "--set", "seeds.data=[4, 5]"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in plan["runs"]][:2] == ["default/d4", "default/d5"]
    assert not (study.parent / "results").exists()


def test_plan_says_what_is_unresolved(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["plan", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "unresolved" in shown and "sources.sums" in shown


def test_curves_hold_a_row_for_each_arm_and_update(study: Path) -> None:
    assert cli.call(["plan", str(study), "--curves", "curves.csv"]) == 0
    lines = (study.parent / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 20
    assert cli.call(["plan", str(study), "--curves", "curves.csv", "--every", "5"]) == 0
    lines = (study.parent / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 5  # steps 0, 5, 10, 15 and the last


def test_curves_have_the_lengths_that_the_plan_has(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an arm whose length follows from another's compute, and of what `--set` says."""
    solved = "cases: {long: {stages.decay.tokens: 5120}, as-dear: {stages.decay.tokens: {flops_of: long}}}"
    for model in ("", "vocab_size: 300, num_key_value_heads: 2, tie_word_embeddings: true, "):
        study.write_text(STUDY.replace("{model_type: llama, ", f"{{model_type: llama, {model}"))
        call = ["plan", str(study), "--curves", "curves.csv", "--json", "--set", f"ablate=[{{{solved}}}]"]
        assert cli.call(call) == 0
        plan = json.loads(capsys.readouterr().out)
        ends = {run["arm"]: run["points"][-1]["tokens"] for run in plan["runs"]}
        ends |= {arm["name"]: ends[arm["same_as"]] for arm in plan["arms"] if arm["same_as"]}
        rows = [line.split(",") for line in (study.parent / "curves.csv").read_text().splitlines()[1:]]
        found = {arm: int(tokens) + 256 for arm, _, tokens, *_ in rows}
        if not model:  # the compute of a model whose vocabulary is not known yet
            assert "the length of as-dear" in plan["unresolved"] and "as-dear" not in found
            continue
        assert found == ends and found["as-dear"] == found["long"] != found["default"]


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["schema"]) == 0
    assert "stages" in json.loads(capsys.readouterr().out)["properties"]


def test_doctor_finds_what_the_tests_run_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
        assert cli.call(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert {"python", "torch", "device", "token store"} <= {check["name"] for check in found["checks"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("suites: [quickstar@1]", "small.yaml:19:17: eval.suites[0]: There is no suite `quickstar@1`"),
        ("tasks: [mine.yaml]", "small.yaml:19:16: eval.tasks[0]: The evaluation task `mine.yaml` is not there"),
    ],
)
def test_an_unknown_suite_or_task_is_named_where_it_stands(
    study: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY + "eval: {" + line + ", max_length: 64}\n")
    assert cli.call(["plan", "small.yaml"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("hiden_size: 16", "small.yaml:4:51: `base.model.config.hiden_size` is no field of llama; did you mean"),
        ("hidden_size: 0", "small.yaml:4:11: `base.model.config` makes no llama model"),
    ],
)
def test_what_only_a_run_can_refuse_of_the_base_is_placed_too(
    study: Path, field: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace("hidden_size: 16", field))
    assert cli.call(["run", "small.yaml"]) == 2
    assert said in capsys.readouterr().err


def test_files_of_a_source_are_looked_for_before_anything_is_read(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_text(STUDY.replace("sources:\n", "sources:\n  mine: {files: [data/*.jsonl]}\n"))
    assert cli.call(["run", "small.yaml"]) == 2
    shown = capsys.readouterr()
    assert "small.yaml:8:3: source `mine`: no file matches `data/*.jsonl`" in shown.err
    assert "tokenizer" not in shown.out
