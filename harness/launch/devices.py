"""Which GPU each of several workers on this machine works on: every one would take the first that it sees."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus_here() -> list[str]:
    """What nvidia-smi says of each GPU: its model, and whether it is divided (MIG). Empty without an answer."""
    command = ["nvidia-smi", "--query-gpu=name,mig.mode.current", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def to_share(
    device: str, environ: Mapping[str, str] = os.environ, here: Callable[[], Sequence[str]] = gpus_here
) -> list[str]:
    """The GPUs to be shared out among workers, by CUDA's names; empty where there is nothing to choose.

    device: `launch.device`. A list in CUDA_VISIBLE_DEVICES is taken as it is. Without one, GPUs of several models are
    left alone (runs would differ in their numerics, and a small one may only drive a screen), and so are divided ones.
    """
    if device == "cpu":
        return []
    if VISIBLE in environ:
        names = [name.strip() for name in environ[VISIBLE].split(",")]
        end = next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA reads no further
        names = names[:end]
    else:
        found = here()
        alike = len(set(found)) == 1 and not found[0].endswith("Enabled")
        names = [str(number) for number in range(len(found))] if alike else []
    return names if len(names) > 1 else []


def least_used(shared: Sequence[str], taken: Collection[str | None]) -> str | None:
    """The GPU for the next worker: the first of those that the fewest have. None where there is nothing to choose."""
    counts = Counter(taken)
    return min(shared, key=lambda name: counts[name], default=None)
