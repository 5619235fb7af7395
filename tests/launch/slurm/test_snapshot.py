"""The copy of the code that jobs run is what its name says, or made anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.launch import code
from harness.launch.gc import Garbage, Waste, collect
from harness.launch.slurm import snapshot
from harness.store.layout import Folder


@pytest.mark.parametrize("lost", ["harness/launch/slurm/job.py", "analysis"])
def test_half_a_snapshot_is_not_run(tmp_path: Path, lost: str) -> None:
    whole = snapshot.take(Folder(tmp_path))
    assert whole.name == code.tree_hash() and (whole / snapshot.COMPLETE).exists()
    shutil.rmtree(whole / lost) if (whole / lost).is_dir() else (whole / lost).unlink()
    again = snapshot.take(Folder(tmp_path))
    assert again == whole and (whole / lost).exists()
    assert [path.name for path in Folder(tmp_path).snapshots.iterdir()] == [whole.name]


def test_a_removal_that_is_killed_leaves_no_snapshot_that_says_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    old = snapshot.take(folder)

    def killed(path: Path, **named: Any) -> None:
        (path / "harness" / "cli.py").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(Garbage(folder, (Waste("snapshot", old, 1),), ()))
    assert (old / "harness").is_dir() and not (old / snapshot.COMPLETE).exists()
