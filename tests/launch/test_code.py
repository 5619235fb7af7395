"""What an attempt records of its code: the tree as it is, the commit, and whether the commit is all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launch import code


@pytest.mark.parametrize(
    ("code_of_git", "printed", "dirty"),
    [(0, "", False), (0, " M harness/cli.py\n", True), (128, "", None)],
)
def test_changes_that_no_commit_has_are_recorded(
    monkeypatch: pytest.MonkeyPatch, code_of_git: int, printed: str, dirty: bool | None
) -> None:
    done = subprocess.CompletedProcess([], code_of_git, stdout=printed, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **named: done)
    code.git_dirty.cache_clear()
    assert code.git_dirty() is dirty
    code.git_dirty.cache_clear()


def test_the_record_names_the_tree() -> None:
    found = code.provenance()
    assert found["tree"] == code.tree_hash() and len(found["tree"]) == 64
    assert set(found) == {"tree", "commit", "dirty"}


def test_a_process_of_ours_finds_the_packages_of_this_one_wherever_it_is_started(tmp_path: Path) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("")
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = code.command("harness.cli", "doctor", "--json")
    assert words[:4] == [sys.executable, "-P", "-m", "harness.cli"]
    where = [sys.executable, "-P", "-c", "import harness; print(harness.__file__)"]
    done = subprocess.run(where, cwd=tmp_path, env=code.environment(bare), capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == Path(str(code.harness.__file__))
