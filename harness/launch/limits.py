"""What a study's `launch` asks of the machines, against what `ablate run` does on this one."""

from __future__ import annotations

from harness.launch import look
from harness.study.checks import liger_parts
from harness.study.errors import UserError
from harness.study.schema.execution import LaunchSpec

FOR_A_CLUSTER = ("time", "parallel", "slurm", "resources")


def check_here(launch: LaunchSpec) -> str | None:
    """One line on the keys that only a cluster needs; None where the study has none of them.

    Raises UserError for what this machine's executors cannot do: a run trains in one process on one device, with
    kernels that are installed here and have the GPU that they need.
    """
    for key, what in (("nodes", "machines"), ("gpus", "GPUs")):
        value = getattr(launch, key)
        if value > 1:
            raise UserError(
                f"launch.{key} is {value}: a run on several {what} needs `--executor slurm`. To train it on one here, "
                f"which changes rounding and nothing else, add --set launch.{key}=1"
                + ("." if launch.strategy == "auto" else " --set launch.strategy=auto.")
            )
    if launch.strategy != "auto":
        raise UserError(
            f"launch.strategy is {launch.strategy}: it divides a run among several processes, which needs `--executor "
            "slurm`. To train in one process here, add --set launch.strategy=auto."
        )
    parts = liger_parts(launch)
    found = look.liger(parts, launch.device) if parts else None
    if found is not None and not found.ok:
        raise UserError(f"launch.kernels asks for Liger's kernels: {found.sentence} here. Use {found.get}.")
    idle = [f"launch.{key}" for key in FOR_A_CLUSTER if getattr(launch, key)]
    if not idle:
        return None
    return f"{' and '.join(idle)}: for a cluster, without effect here, where launch.jobs says how many run at once"


def check_cluster(launch: LaunchSpec) -> str | None:
    """One line on the keys that only this machine needs; None where the study has none of them.

    Raises UserError for GPUs that a study for processors asks for.
    """
    if launch.device == "cpu" and max([launch.gpus, *(rule.gpus or 0 for rule in launch.resources)]) > 1:
        raise UserError(
            "launch.gpus asks for GPUs that `launch.device: cpu` would not use. Several processes on the processors of "
            "one machine are `launch.slurm: {ntasks_per_node: N}`."
        )
    if launch.jobs == 1:
        return None
    return "launch.jobs: for this machine, without effect on a cluster, where launch.parallel says how many run at once"
