"""The code that jobs run: `snapshots/<tree-hash>/`, a copy that later edits of the sources do not reach.

It is staged, made durable and renamed, so it is there whole or not at all, and named by what it holds. What the commit
beside it does not have lies in `dirty.diff`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import analysis
import harness
from harness.launch import code
from harness.store.atomic import fsync_tree, publish, staging_folder, write_bytes, write_json, writing
from harness.store.layout import Folder
from harness.study.errors import UserError

COMPLETE = code.SNAPSHOT
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.pyo")


def take(folder: Folder) -> Path:
    """The snapshot of the code of this process, made unless it is there.

    Raises WriteFailed, and UserError when the sources change meanwhile.
    """
    final = folder.snapshots / code.tree_hash()
    if _whole(final):
        return final
    with writing(final):
        folder.snapshots.mkdir(parents=True, exist_ok=True)
        staged = staging_folder(final)
        try:
            for package in (analysis, harness):
                source = Path(str(package.__file__)).parent
                shutil.copytree(source, staged / package.__name__, ignore=_LEFT_OUT)
            if _hash_of(staged) != final.name:
                raise UserError("the harness's own sources were edited while they were copied; run this again.")
            difference = uncommitted()
            if difference:
                write_bytes(staged / "dirty.diff", difference)
            write_json(staged / COMPLETE, {"schema": 1, **code.provenance()})
            fsync_tree(staged)
            publish(staged, final, _whole)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    return final


def _whole(snapshot: Path) -> bool:
    """Whether a snapshot holds what its name says: its removal may have been cut short, its files edited."""
    return (snapshot / COMPLETE).exists() and _hash_of(snapshot) == snapshot.name


def _hash_of(snapshot: Path) -> str:
    return code.hash_of([snapshot / package.__name__ for package in (analysis, harness)])


def uncommitted() -> bytes:
    """What `git diff` says of the packages against the commit, new files included; empty where there is no git."""
    roots = [str(Path(str(package.__file__)).parent) for package in (analysis, harness)]
    git = ["git", "--no-optional-locks", "-C", roots[0]]
    tracked = _output([*git, "diff", "--binary", "HEAD", "--", *roots])
    new = _output([*git, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", "--", *roots])
    top = _output([*git, "rev-parse", "--show-toplevel"]).decode().strip()
    for name in filter(None, new.decode(errors="surrogateescape").split("\0")):
        # Exit code 1 says that they differ, which they do.
        tracked += _output([*git[:2], "-C", top, "diff", "--no-index", "--binary", "--", "/dev/null", name], (0, 1))
    return tracked


def _output(command: list[str], good: tuple[int, ...] = (0,)) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode in good else b""
