"""Trackers: W&B, trackio, TensorBoard. A projection of a results folder, written beside the work and never in its way.

The metrics and evaluations of the folder are the record. A process of its own follows them and hands them on; what it
could not send is named, and `ablate sync` sends it later. Nothing here is imported by a process that trains.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

TRACKERS = ("wandb", "trackio", "tensorboard")
NONE = "none"
WANDB_SERVER = "https://api.wandb.ai"
LOGIN = "`wandb login`, or `export WANDB_API_KEY=...`"


def install_command(name: str) -> str:
    return f"`pip install {name}`"


def installed(name: str) -> bool:
    """Whether a tracker's package is there; it is not imported."""
    return importlib.util.find_spec(name) is not None


def check(name: str, offline: bool | None = None) -> tuple[bool, str, str]:
    """(ok, what was found, how to get what is missing) of one tracker, without importing it and without the network.

    offline: whether a study wants W&B offline, where no login is needed; None: as WANDB_MODE says. Of a key only
    whether there is one is said, never the key.
    """
    if name not in TRACKERS:
        raise ValueError(f"{name} is not one of {', '.join(TRACKERS)}")
    if not installed(name):
        return False, "not installed", install_command(name)
    try:
        found = version(name)
    except PackageNotFoundError:  # importable from a path, without its metadata
        found = "installed"
    if name != "wandb":
        return True, found, ""
    if offline or (offline is None and os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")):
        return True, f"{found}, offline", ""
    if logged_in():
        return True, f"{found}, logged in", ""
    return False, f"{found}, not logged in", f"{LOGIN}, or `export WANDB_MODE=offline`"


def logged_in(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether there is a key for the W&B server; it is not read further."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or WANDB_SERVER).hostname or ""
    try:
        return netrc.netrc(environment.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
