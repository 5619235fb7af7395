"""Who a task of Slurm is, from its environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """job: id of the array, or of the job alone, as sbatch gave it. own: id of this very job. index: in the array.

    restart: how often Slurm has put it back into its queue. rank, world: of this process among the job's;
    local_rank: among those of its node.
    """

    job: str
    own: str
    index: int
    restart: int
    node: str
    rank: int = 0
    world: int = 1
    local_rank: int = 0


def task_of(environ: Mapping[str, str]) -> Task:
    """Raises KeyError outside a job of Slurm."""
    own = environ["SLURM_JOB_ID"]
    return Task(
        job=environ.get("SLURM_ARRAY_JOB_ID", own),
        own=own,
        index=int(environ.get("SLURM_ARRAY_TASK_ID", 0)),
        restart=int(environ.get("SLURM_RESTART_COUNT", 0)),
        node=environ.get("SLURMD_NODENAME", socket.gethostname()),
        rank=int(environ.get("SLURM_PROCID", 0)),
        world=int(environ.get("SLURM_NTASKS", environ.get("SLURM_NPROCS", 1))),
        local_rank=int(environ.get("SLURM_LOCALID", 0)),
    )
