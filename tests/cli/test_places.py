"""Paths at which something else stands: one paragraph and exit code 2, whatever the verb."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from tests.launch.conftest import TINY

RESULTS = Path(__file__).parents[2] / "results" / "quickstart"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY)
    homeless = TINY.replace("sums: {builtin: arithmetic, documents: 400}", "sums: {files: ['~nobody-at-all/*.jsonl']}")
    (tmp_path / "homeless.yaml").write_text(homeless)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    shutil.copytree(RESULTS, tmp_path / "quickstart")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("run tiny.yaml -o file", "file is a file; expected a folder"),
        ("run tiny.yaml -o file/below", "is a file, so file/below cannot lie below it"),
        ("run tiny.yaml -o loop", "loop: "),
        (f"run tiny.yaml -o {'x' * 300}", "File name too long"),
        ("plan tiny.yaml -o file", ""),
        ("plan tiny.yaml --curves file/below.csv", "cannot be written"),
        ("status file", "file/plan.json cannot be read (Not a directory)"),
        ("run homeless.yaml -o out", "there is no user `nobody-at-all`"),
        ("plan tiny.yaml --set base.model=~nobody-at-all/x", ""),
        ("eval quickstart", "the study of quickstart was"),
        ("gc nothing --yes", "nothing is not a results folder"),
        ("run tiny.yaml -o 'not\udce9text'", "is no valid UTF-8"),
    ],
)
def test_no_call_ends_in_a_traceback(here: Path, call: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.call(shlex.split(call))
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown
    assert code == (2 if said else code)
    assert not (here / "nothing").exists()


def test_a_terminal_that_lacks_letters_shows_escapes_and_json_stays_json(here: Path) -> None:
    (here / "müde").symlink_to("quickstart")
    shown = [
        subprocess.run(
            [sys.executable, "-m", "harness.cli", *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout.decode("ascii")
        for words in (["compare", "quickstart", "default", "constant"], ["status", "müde", "--json"])
    ]
    assert "\\u2212" in shown[0], "a minus"
    assert json.loads(shown[1])["folder"] == "müde"


def test_the_record_of_a_study_is_planned_as_an_empty_folder_and_never_trained_in(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a clone brings: metrics and evaluations without weights are no damage, and no start for a run."""
    before = sorted(here.joinpath("quickstart").rglob("*"))
    assert cli.call(["plan", "quickstart/study.yaml", "-o", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert "quickstart is the record of a study" in shown and "damaged" not in shown and "re-keyed" not in shown
    assert cli.call(["run", "quickstart/study.yaml", "-o", "quickstart"]) == 2
    assert "(`mv quickstart quickstart.record`)" in capsys.readouterr().err
    assert sorted(here.joinpath("quickstart").rglob("*")) == before
