"""`launch.slurm`: options of sbatch by their own names, and rules that give some of the work other resources.

Names are those of Submitit's Slurm executor and of sbatch's long options, with `-` or `_`. What the harness itself says
in every submission is refused by name, with the key of the study that says it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from harness.study.blocks import Block, Duration, choice, said
from harness.study.errors import nearest
from harness.study.schema.scalars import Count, Text


def words(text: str) -> frozenset[str]:
    """The names in a text."""
    return frozenset(text.split())


# Options that Submitit's executor takes by name (1.5); the others go through its additional_parameters.
OF_SUBMITIT = words(
    """
    account comment constraint cpus_per_gpu cpus_per_task exclude exclusive gpus_per_node gpus_per_task gres
    mail_type mail_user mem mem_per_cpu mem_per_gpu nodelist nodes ntasks_per_node partition qos setup
    signal_delay_s srun_args stderr_to_stdout teardown time use_srun wckey
    """
)
# sbatch(1) of Slurm 22.05 and later; those that make no sense for a batch of somebody else's are left out.
OF_SBATCH = words(
    """
    account acctg_freq batch bb bbf begin burst_buffer chdir cluster_constraint clusters comment constraint
    container context contiguous core_spec cores_per_socket cpu_freq cpus_per_gpu cpus_per_task deadline
    delay_boot distribution exclude exclusive export export_file extra extra_node_info get_user_env gid gpu_bind
    gpu_freq gpus gpus_per_node gpus_per_socket gpus_per_task gres gres_flags hint ignore_pbs licenses mail_type
    mail_user mcs_label mem mem_bind mem_per_cpu mem_per_gpu mincpus network nice no_kill nodefile nodelist
    ntasks_per_core ntasks_per_gpu ntasks_per_node ntasks_per_socket overcommit oversubscribe partition power
    prefer priority profile propagate qos reboot reservation segment sockets_per_node spread_job stepmgr
    switches thread_spec threads_per_core time_min tmp tres_bind tres_per_job tres_per_node tres_per_task uid
    use_min_nodes wait_all_nodes wckey x11
    """
)
# Said by the harness itself.
OURS = {
    "nodes": "launch.nodes says it",
    "time": "launch.time says it",
    **dict.fromkeys(
        ("gpus", "gpus_per_node", "gpus_per_socket"),
        "launch.gpus says how many GPUs a machine gives, launch.gpu_type of which type",
    ),
    "clusters": "jobs are looked for on the cluster of this machine alone, and would be taken for lost elsewhere",
    **dict.fromkeys(("uid", "gid"), "jobs are looked for among those of the user who calls `ablate`"),
    "array_parallelism": "launch.parallel says it",
    "use_srun": "every job starts its processes with srun",
    **dict.fromkeys(("job_name", "name"), "the harness finds its jobs again by their names"),
    **dict.fromkeys(("array", "dependency", "hold", "kill_on_invalid_dep"), "the study's tree says it"),
    **dict.fromkeys(("output", "error", "open_mode", "stderr_to_stdout"), "the logs lie in the results folder"),
    **dict.fromkeys(("requeue", "no_requeue"), "a job goes on from its newest checkpoint"),
    **dict.fromkeys(("signal",), "signal_delay_s says how many seconds before its limit a job is told to checkpoint"),
    **dict.fromkeys(("ntasks",), "ntasks_per_node says how many processes a node has"),
}
VALID = sorted((OF_SUBMITIT | OF_SBATCH) - OURS.keys())
_LISTS = ("setup", "teardown", "srun_args")
_COUNTS = ("ntasks_per_node", "cpus_per_task")
_DEVICES = ("gres", "tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task")


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise said("expected a mapping of sbatch's options, such as {account: ours, qos: normal}")
    found: dict[str, Any] = {}
    for key, given in value.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name in OURS:
            raise said(f"`{key}` cannot be set here: {OURS[name]}")
        if name not in VALID:
            raise said(f"`{key}` is no option of sbatch; {nearest(name, VALID)}. Valid: {', '.join(VALID)}")
        if name in found:
            raise said(f"`{key}` is given twice, expected once")
        found[name] = _value(name, given)
    return found


def _value(name: str, given: Any) -> Any:
    if name in _LISTS:
        if not isinstance(given, list) or not all(isinstance(line, str) for line in given):
            raise said(f"`{name}`: expected a list of texts")
        return list(given)
    if name in _COUNTS and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise said(f"`{name}: {given}`: expected a positive whole number")
    if name == "gpus_per_task" and given != 1:
        raise said(f"`{name}: {given}`: every process has one GPU, and launch.gpus says how many there are; expected 1")
    if name in _DEVICES and "gpu" in str(given).lower():
        raise said(f"`{name}: {given}` cannot be set here: {OURS['gpus']}")
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        if given is True:
            return True
        raise said(f"`{name}`: expected a text or a number, or `true` for an option without a value")
    if isinstance(given, str) and any(character in given for character in "\n\r\0"):
        raise said(f"`{name}`: expected one line")
    return given


SlurmOptions = Annotated[
    dict[str, Any], BeforeValidator(_options), WithJsonSchema({"type": "object", "additionalProperties": True})
]


def _gpu_type(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value):
        raise said("expected a type of GPU by Slurm's name for it, such as h100; launch.gpus says how many")
    return value


GpuType = Annotated[str, BeforeValidator(_gpu_type)]


class ResourcesRule(Block):
    """Other resources for some of the work; of several rules that are meant, later ones win."""

    arm: Text | None = Field(
        None, description="arms, by name or with `*`; work that several share is meant when all are"
    )
    stage: Text | None = Field(None, description="a stage's name")
    work: Annotated[Literal["train", "evaluate", "close"], choice("train", "evaluate", "close")] | None = Field(
        None, description="train, evaluate, or close: the last job, which writes the report"
    )
    nodes: Count | None = Field(None, description="a positive whole number of machines per run")
    gpus: Count | None = Field(None, description="a positive whole number of GPUs per machine")
    gpu_type: GpuType | None = Field(None, description="the type of GPU, such as h100")
    time: Duration | None = Field(None, description="a job's time, such as 12h")
    slurm: SlurmOptions = Field(
        default_factory=dict, description="a mapping of sbatch's options, added to launch.slurm"
    )


def without_effect(rule: ResourcesRule) -> str | None:
    """What a rule asks for that the work which it names cannot use, as a key of it; None where all of it acts."""
    if rule.work not in ("evaluate", "close"):
        return None
    if (rule.nodes or 1) > 1:
        return "nodes"
    if rule.work == "close" and rule.gpu_type is not None and not rule.gpus:
        return "gpu_type"
    if rule.work == "evaluate" and (rule.gpus or 1) > 1:
        return "gpus"
    return "slurm" if rule.slurm.get("ntasks_per_node", 1) != 1 else None
