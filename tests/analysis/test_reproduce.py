"""`reproduce.sh`: what it says, that no name of a study can break out of it, and that it makes the results again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.report import build
from tests.analysis.fabricate import Design, fabricate

HERE = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("without_figures")

MICRO = """schema: 1
study: micro
base:
  model:
    config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
  tokenizer: {bpe: {vocab: 300, sources: [sums]}}
sources: {sums: {builtin: arithmetic, documents: 300, held_out: 0.1}}
train:
  batch_tokens: 128
  precision: fp32
  mixture: {sums: 1}
  context: {length: 32}
  optimizer: {lr: 1e-2}
stages:
  stable: {tokens: 1024, lr: {shape: constant}}
  decay: {tokens: 512, lr: {shape: linear, to: 0}}
ablate:
  - cases: {steady: {stages.decay.lr: {shape: constant}}}
eval: {max_length: 32, held_out: {window: 32, documents: 5}}
compare: {allow: {steady: [schedule-open]}}
"""


def script(root: Path, *arguments: str, python: str = sys.executable, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": python, **more}
    command = ["bash", str(root / "report" / "reproduce.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE, timeout=300)


def planned(root: Path, **changes: object) -> Path:
    plan = json.loads((root / "plan.json").read_bytes())
    (root / "plan.json").write_text(json.dumps({**plan, **changes}))
    build(root)
    return root


def test_it_is_a_script_that_bash_reads(killed: Path) -> None:
    path = killed / "report" / "reproduce.sh"
    assert os.access(path, os.X_OK)
    assert path.read_text("utf-8").startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_it_names_code_versions_numerics_and_the_call(killed: Path) -> None:
    text = (killed / "report" / "reproduce.sh").read_text("utf-8")
    assert "4a" * 20 in text  # the source tree of the attempts
    assert "versions=(torch=2.13.0)" in text
    assert "numerics.threads 1" in text and "numerics.device cpu" in text
    assert "arguments=(--set 'seeds.data=[1, 2, 3]')" in text
    assert "not recorded; --check compares the trees" in text


def test_unshared_results_are_made_again_unshared(tmp_path: Path) -> None:
    root = planned(fabricate(tmp_path, Design()), share=False)
    assert "--no-share)" in (root / "report" / "reproduce.sh").read_text("utf-8")


def test_check_says_what_differs_and_runs_nothing(killed: Path) -> None:
    before = sorted(path for path in killed.rglob("*"))
    done = script(killed, "--check")
    assert done.returncode == 1
    assert "code: differs; this checkout is " in done.stdout and "4a" * 20 in done.stdout
    assert "torch: " in done.stdout and "study: differs" not in done.stdout
    assert sorted(path for path in killed.rglob("*")) == before


def test_another_study_file_is_noticed(killed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("schema: 1\n")
    assert f"study: differs; {other} is not the file that was run" in script(killed, "--check", STUDY=str(other)).stdout


def test_a_missing_interpreter_is_one_sentence(killed: Path) -> None:
    done = script(killed, python="/nowhere/python")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("reproduce.sh: there is no /nowhere/python here") and done.stderr.count("\n") == 1


def test_nothing_that_a_study_says_reaches_the_shell(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    evil = f"$(touch {planted}) `touch {planted}` '; touch {planted}; ' \" \n touch {planted}\n# @study@"
    root = fabricate(tmp_path / "results", Design())
    planned(root, study=evil, question=evil, asked={"file": evil, "set": [f"notes={evil}", evil]})
    text = (root / "report" / "reproduce.sh").read_text("utf-8")
    assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True).returncode == 0
    script(root, "--check")
    script(root, python="/nowhere/python")
    assert not planted.exists()
    assert not re.search(r"^ touch", text.split("set -euo pipefail")[0], flags=re.MULTILINE)


@pytest.mark.slow
def test_the_script_makes_a_study_again_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "micro.yaml").write_text(MICRO)
    root, again = tmp_path / "results of micro", tmp_path / "again"
    environment = {**os.environ, "ABLATE_CACHE": str(tmp_path / "cache")}
    words = ["run", str(tmp_path / "micro.yaml"), "-o", str(root), "--set", "stages.stable.tokens=2048", "--jobs", "1"]
    first = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert first.returncode == 0, first.stderr
    checked = script(root, "--check", **environment)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "code: the same" in checked.stdout and "torch: the same" in checked.stdout
    (tmp_path / "micro.yaml").unlink()  # the results alone are enough
    done = script(root, str(again), "--jobs", "2", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal: table.csv of micro, to the bit" in done.stdout
    assert "equal: claims.json of micro, to the bit" in done.stdout
    plan = json.loads((again / "plan.json").read_bytes())
    assert plan["asked"]["set"] == ["stages.stable.tokens=2048"]
