"""What each item of work asks of the cluster, as the parameters that Submitit writes into an sbatch file.

Several processes train together. Whatever else an item does, one process does it: it gets one task, and one GPU, of one
machine, whatever training asks for.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from harness.study.errors import UserError
from harness.study.schema.slurm import OF_SUBMITIT, words

if TYPE_CHECKING:
    from harness.launch.work import Work
    from harness.plan.plan import Plan
    from harness.study.schema.execution import LaunchSpec, ResourcesRule

CLOSE = "close"
SIGNAL_SECONDS = 90  # before the time limit, a job is told to checkpoint

# Options that describe what training needs; the last job needs a processor.
_OF_TRAINING = words(
    """
    gpus gpus_per_node gpus_per_socket gpus_per_task gres gres_flags gpu_bind gpu_freq cpus_per_gpu mem_per_gpu
    ntasks_per_gpu tres_per_job tres_per_node tres_per_socket tres_per_task constraint exclusive mem ntasks_per_node
    cpus_per_task
    """
)


class Resources:
    """Looks up what an item asks for: the study's `launch`, with every rule of `launch.resources` that is meant."""

    def __init__(self, launch: LaunchSpec, plan: Plan | None = None) -> None:
        self._launch = launch
        self._arms: dict[str, set[str]] = {}
        self._stages: dict[str, str] = {}
        self._found: dict[Any, tuple[dict[str, Any], str]] = {}
        if plan is not None and launch.resources:
            self._look_at(plan)

    def _look_at(self, plan: Plan) -> None:
        names = {arm.name: {arm.name} for arm in plan.arms if not arm.same_as}
        for arm in plan.arms:
            if arm.same_as:
                names.setdefault(arm.same_as, {arm.same_as}).add(arm.name)
        for run in plan.runs:
            for state in {run.base, *run.path, *(point.state for point in run.points)}:
                self._arms.setdefault(state, set()).add(run.arm)
        self._names = names
        self._stages = {segment.id: segment.stage for segment in plan.segments.values()}

    def of(self, item: Work) -> dict[str, Any]:
        """The parameters of an item's job."""
        return self._known(item)[0]

    def group(self, item: Work) -> str:
        """The name of the resources that an item asks for."""
        return self._known(item)[1]

    def check(self, items: Iterable[Work], plan: Plan) -> None:
        """Raise UserError where a batch has no equal part for each of the processes that train it together, where one
        process is to divide its model, and where not every process has a GPU of its own."""
        for item in items:
            if item.kind != "train":
                continue
            _check_gpus(self.of(item), item.name)
            world = tasks(self.of(item))
            if world == 1:
                _check_strategy(self._launch, item.name)
                continue
            segment = plan.segments[item.state]
            for piece in plan.runs[segment.run].pieces:
                if segment.tokens_from < piece.end and piece.start < segment.tokens_to:
                    length = int(piece.science["context"]["length"])
                    _check_rows(int(piece.science["batch_tokens"]) // length, length, world, item.name)

    def _known(self, item: Work) -> tuple[dict[str, Any], str]:
        arms: Collection[str] = ()
        stage = None
        if self._launch.resources:
            arms, stage = self._arms.get(item.state, set()), self._stages.get(item.state)
        key = (item.kind, frozenset(arms), stage)
        if key not in self._found:
            parameters = self._parameters(item.kind, arms, stage)
            self._found[key] = (parameters, group_of(parameters))
        return self._found[key]

    def close(self) -> dict[str, Any]:
        """The parameters of the job that ticks and writes the report: one processor of one machine, more where a rule
        for it says `cpus_per_task`."""
        return self._parameters(CLOSE, set(), None)

    def _parameters(self, kind: str, arms: Collection[str], stage: str | None) -> dict[str, Any]:
        """kind: of an item, or CLOSE. A rule for `train` is meant for bases, too, one for `evaluate` for merges."""
        launch = self._launch
        work = {"base": "train", "merge": "evaluate"}.get(kind, kind)
        asked = {name: getattr(launch, name) for name in ("nodes", "gpus", "gpu_type", "time")}
        slurm = dict(launch.slurm)
        if work == CLOSE:
            asked |= {"gpus": 0, "time": None}
            slurm = {name: value for name, value in slurm.items() if name not in _OF_TRAINING}
        for rule in launch.resources:
            if self._meant(rule, work, arms, stage):
                asked |= {name: getattr(rule, name) for name in asked if getattr(rule, name) is not None}
                slurm |= rule.slurm
        if kind != "train":
            asked["nodes"] = 1
            slurm.pop("ntasks_per_node", None)
        if kind in ("base", "merge", "evaluate"):
            asked["gpus"] = 1
        return _submitit(launch, asked, slurm, alone=kind != "train", threads=1 if kind == CLOSE else launch.threads)

    def _meant(self, rule: ResourcesRule, work: str, arms: Collection[str], stage: str | None) -> bool:
        """Whether a rule speaks of some work. What several arms share is meant when all of them are."""
        if rule.work is not None and rule.work != work:
            return False
        if rule.work is None and work == CLOSE:
            return False
        if rule.stage is not None and rule.stage != stage:
            return False
        if rule.arm is None:
            return True
        return bool(arms) and all(self._named(arm, rule.arm) for arm in arms)

    def _named(self, arm: str, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in self._names.get(arm, {arm}))


def _submitit(
    launch: LaunchSpec, asked: Mapping[str, Any], slurm: Mapping[str, Any], alone: bool, threads: int
) -> dict[str, Any]:
    """Parameters by Submitit's names; options of Slurm's own that it does not know go in `additional_parameters`.

    alone: one process does it all, however many GPUs it has. threads: of a process.
    """
    parameters: dict[str, Any] = {
        "nodes": asked["nodes"],
        "ntasks_per_node": 1,
        "cpus_per_task": threads,
        "time": None if asked["time"] is None else -(-int(asked["time"]) // 60),  # minutes
        "signal_delay_s": SIGNAL_SECONDS,
        "wckey": None,  # Submitit's own would be refused where wckeys are checked
    }
    if launch.device != "cpu" and asked["gpus"]:
        of_type = f"{asked['gpu_type']}:" if asked["gpu_type"] else ""
        count = asked["gpus"]
        parameters |= {
            "gpus_per_node": f"{of_type}{count}" if of_type else count,
            "ntasks_per_node": 1 if alone else count,
        }
    more: dict[str, Any] = {}
    for name, value in slurm.items():
        (parameters if name in OF_SUBMITIT else more)[name] = value
    if more:
        parameters["additional_parameters"] = dict(sorted(more.items()))
    return parameters


def _check_gpus(parameters: Mapping[str, Any], name: str) -> None:
    there, processes = _of_a_node(parameters), parameters["ntasks_per_node"]
    if there and there != processes:
        raise UserError(
            f"{name}: launch.gpus gives {there} GPUs a machine, and `ntasks_per_node: {processes}` would make "
            f"{processes} processes there; each process has one GPU, so leave `ntasks_per_node` away (with "
            "`launch.device: cpu` it says how many processes a machine has)."
        )


def _check_strategy(launch: LaunchSpec, name: str) -> None:
    if launch.strategy != "auto":
        raise UserError(
            f"{name}: `launch.strategy: {launch.strategy}` divides a run among several processes, and what is asked "
            "for it makes one; use `auto`, which divides what has several."
        )


def _check_rows(rows: int, length: int, world: int, name: str) -> None:
    if rows % world:
        fitting = [str(n) for n in range(1, rows + 1) if rows % n == 0]
        raise UserError(
            f"{name}: a batch of {rows} rows of {length} tokens cannot be divided among {world} processes that train "
            f"together (launch.nodes times launch.gpus or ntasks_per_node); use one of {', '.join(fitting[-8:])}, or "
            "another batch_tokens."
        )


def group_of(parameters: Mapping[str, Any]) -> str:
    """A short name for resources that are equal."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]


def gpus(parameters: Mapping[str, Any]) -> int:
    """GPUs of one job, 0 where it asks for none."""
    return int(parameters.get("nodes") or 1) * _of_a_node(parameters)


def _of_a_node(parameters: Mapping[str, Any]) -> int:
    """GPUs of one machine: 4 of `4` and of `h100:4`."""
    return int(str(parameters.get("gpus_per_node") or 0).rpartition(":")[2])


def tasks(parameters: Mapping[str, Any]) -> int:
    """Processes of one job."""
    return int(parameters.get("nodes") or 1) * int(parameters.get("ntasks_per_node") or 1)
