"""`ablate doctor`: is everything here that a study needs?"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from harness.launch.code import git_commit, tree_hash
from harness.launch.progress import tokens

NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic", "ruamel.yaml", "pyarrow")
EVALUATION = ("lm_eval", "scipy", "matplotlib", "jinja2")
LOW_DISK_BYTES = 2e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ok None: worth knowing, neither right nor wrong."""

    name: str
    ok: bool | None
    found: str


def checks() -> list[Check]:
    """Everything that is looked at; a check that cannot be made is a failed one."""
    return [
        _python(),
        *[_package(name) for name in NEEDED + EVALUATION],
        _guarded("device", _device),
        Check("cores", None, str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        _guarded("token store", _token_store),
        _guarded("gguf", _gguf),
        Check("code", None, f"tree {tree_hash()[:12]}, commit {(git_commit() or 'none')[:12]}"),
    ]


def passed(found: list[Check]) -> bool:
    return all(check.ok is not False for check in found)


def text(found: list[Check]) -> str:
    marks = {True: "ok", False: "MISSING", None: "-"}
    width = max(len(check.name) for check in found)
    return "\n".join(f"{check.name:<{width}}  {marks[check.ok]:<7}  {check.found}" for check in found)


def to_json(found: list[Check]) -> dict[str, Any]:
    return {"ok": passed(found), "checks": [asdict(check) for check in found]}


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 11), sys.version.split()[0] + " (3.11 or newer is needed)")


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed; `pip install -e .` in the repository installs it")


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("device", True, f"cuda: {torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return Check("device", True, f"cpu, torch uses {torch.get_num_threads()} threads by itself")


def _token_store() -> Check:
    from harness.data.cache import cache_root

    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root):
        free = shutil.disk_usage(root).free
    return Check("token store", free > LOW_DISK_BYTES, f"{root}, {tokens(free)} bytes free")


def _gguf() -> Check:
    try:
        return Check("gguf", None, f"{version('gguf')}: .gguf files can be the base")
    except PackageNotFoundError:
        return Check("gguf", None, "not installed: needed only for a .gguf file as the base (`pip install gguf`)")
