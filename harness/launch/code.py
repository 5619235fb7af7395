"""Which code ran: a hash of the packages' sources, and the git commit where there is one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import analysis
import harness

SNAPSHOT = "snapshot.json"  # beside the packages, where they are a copy
SUFFIXES = (".py", ".yaml", ".j2", ".css", ".js")


@lru_cache(maxsize=1)
def tree_hash() -> str:
    """`hash_of` the packages that this process runs."""
    return hash_of([Path(str(package.__file__)).parent for package in (analysis, harness)])


def command(module: str, *arguments: str) -> list[str]:
    """The call that runs a module of ours in a process of its own. -P: the folder in which somebody calls `ablate` is
    not searched for modules, it may hold other code."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which `command` finds the packages that this process runs, wherever it found them itself."""
    root = Path(str(harness.__file__)).parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return dict(environ)  # found anyway, and first on the path it would stand before Python's own modules
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), environ.get("PYTHONPATH")]))}


def hash_of(packages: Sequence[Path]) -> str:
    """SHA-256 over the sorted (path, SHA-256 of the content) of every source file of both packages, given by their
    folders."""
    hasher = hashlib.sha256()
    for root in packages:
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
            if path.suffix in SUFFIXES and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                hasher.update(f"{root.name}/{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return hasher.hexdigest()


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """The commit that the packages were checked out from, None when they do not lie in a git work tree."""
    folder = Path(str(harness.__file__)).parent
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@lru_cache(maxsize=1)
def git_dirty() -> bool | None:
    """Whether the packages hold changes that no commit has, None when they do not lie in a git work tree."""
    folders = [str(Path(str(package.__file__)).parent) for package in (analysis, harness)]
    command = ["git", "--no-optional-locks", "-C", folders[0], "status", "--porcelain", "--", *folders]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None


def provenance() -> dict[str, Any]:
    """What an attempt records of the code that it runs: dirty says whether the commit is all of it.

    A snapshot says it itself: what the code was copied from.
    """
    return _of_snapshot() or {"tree": tree_hash(), "commit": git_commit(), "dirty": git_dirty()}


def _of_snapshot() -> dict[str, Any] | None:
    root = Path(str(harness.__file__)).parents[1]
    try:
        said = json.loads((root / SNAPSHOT).read_bytes())
    except (OSError, ValueError):
        return None
    return {name: said.get(name) for name in ("tree", "commit", "dirty")} if root.name == tree_hash() else None
