"""What each kind of work asks of the cluster, and how it stands in the sbatch file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.launch import prepare
from harness.launch.slurm import preview
from harness.launch.slurm.resources import Resources, gpus, tasks
from harness.launch.slurm.submit import array_words, job_name
from harness.store.layout import Folder
from harness.study.errors import UserError

GPU = """\
  device: cuda
  gpus: 4
  time: 12h
  parallel: 2
  slurm: {account: ours, partition: gpu, mem-per-gpu: 60G, constraint: h100, setup: [module load cuda], begin: now+1}
  resources:
    - {work: evaluate, gpus: 1, time: 1h}
    - {arm: more=0.3, nodes: 2, gpus: 2, slurm: {qos: long}}
    - {work: close, slurm: {partition: cpu}}
"""
GOLDEN = Path(__file__).parent / "golden.sbatch"


def prepared(path: Path, launch: str) -> prepare.Prepared:
    path.write_text(path.read_text().replace("launch: {jobs: 2}", f"launch:\n{launch}"))
    return prepare.planned(prepare.load(path), Folder(path.parent / "results"))


def asked(found: prepare.Prepared) -> dict[str, dict[str, Any]]:
    """Parameters by kind and name of the items."""
    asks = Resources(found.study.spec.launch, found.plan)
    return {f"{item.kind} {item.name}": asks.of(item) for item in preview.items(found.plan, found.tasks)}


def test_rules_give_arms_and_kinds_of_work_what_they_need(scored: Path) -> None:
    given = asked(prepared(scored, GPU))
    plain = next(value for name, value in given.items() if name.startswith("train stable"))
    assert (plain["nodes"], plain["gpus_per_node"], plain["ntasks_per_node"], plain["time"]) == (1, 4, 4, 720)
    assert (gpus(plain), tasks(plain)) == (4, 4)
    assert plain["additional_parameters"] == {"begin": "now+1"} and plain["mem_per_gpu"] == "60G"
    arm = next(value for name, value in given.items() if name.startswith("train decay of more=0.3"))
    assert (arm["nodes"], arm["gpus_per_node"], arm["qos"], gpus(arm)) == (2, 2, "long", 4)
    score = next(value for name, value in given.items() if name.startswith("evaluate default"))
    assert (score["gpus_per_node"], score["time"]) == (1, 60)


def test_the_last_job_asks_for_no_gpu(scored: Path) -> None:
    found = prepared(scored, GPU)
    last = Resources(found.study.spec.launch, found.plan).close()
    assert "gpus_per_node" not in last and last["partition"] == "cpu" and tasks(last) == 1


def test_more_processes_than_rows_are_refused(scored: Path) -> None:
    with pytest.raises(UserError, match="a batch of 4 rows of 64 tokens cannot be divided among 3 processes"):
        preview.texts(prepared(scored, "  device: cpu\n  nodes: 3\n"))


def test_one_process_that_would_divide_its_model_is_refused(scored: Path) -> None:
    launch = "  device: cpu\n  nodes: 2\n  strategy: fsdp\n  resources: [{stage: decay, nodes: 1}]\n"
    with pytest.raises(UserError, match=r"`launch\.strategy: fsdp` divides a run among several processes"):
        preview.texts(prepared(scored, launch))


def test_the_sbatch_files_are_these(scored: Path) -> None:
    """Rewrite golden.sbatch from what the failure prints, after reading it."""
    found = prepared(scored, GPU.replace("    - {arm: more=0.3, nodes: 2, gpus: 2, slurm: {qos: long}}\n", ""))
    text = "\n".join(preview.texts(found))
    root = str(scored.parent / "results")
    shown = "\n".join(neutral(line) for line in text.replace(root, "RESULTS").splitlines()) + "\n"
    assert shown == GOLDEN.read_text(), shown


def neutral(line: str) -> str:
    """Without what differs between machines: the interpreter, and the hash of the code."""
    if line.startswith("export PYTHONPATH"):
        head, _, tail = line.partition("snapshots/")
        return f"{head}snapshots/TREE{tail[64:]}"
    if line.startswith("srun"):
        words = line.split()
        return " ".join("PYTHON" if word.endswith(("/python", "/python3")) else word for word in words)
    return line


@pytest.mark.parametrize(
    ("indices", "cap", "words"),
    [([0], None, "0"), ([0, 1, 2], None, "0-2"), ([0, 2, 3, 7], 2, "0,2-3,7%2"), ([0, 1], 5, "0-1")],
)
def test_an_array_in_sbatchs_words(indices: list[int], cap: int | None, words: str) -> None:
    assert array_words(indices, cap) == words


def test_a_jobs_name_is_nobody_elses() -> None:
    assert job_name("tiny", 3) != job_name("tiny", 3)
    assert job_name("tiny", 3, "abc") == "tiny-abc-3"


MANY = """\
  device: cuda
  nodes: 4
  gpus: 8
  threads: 6
  slurm: {account: ours}
"""


def test_what_one_process_does_asks_for_one_gpu_whatever_training_asks_for(scored: Path) -> None:
    found = prepared(scored, MANY)
    given = asked(found)
    for name, parameters in given.items():
        alone = not name.startswith("train")
        assert (parameters["nodes"], gpus(parameters), tasks(parameters)) == ((1, 1, 1) if alone else (4, 32, 32)), name
    assert {name.split()[0] for name in given} == {"base", "train", "evaluate"}


def test_a_type_of_gpu_is_asked_for_by_slurms_name_for_it(scored: Path) -> None:
    rule = "  resources: [{work: evaluate, gpu_type: l40s}]\n"
    found = prepared(scored, "  device: cuda\n  gpus: 2\n  gpu_type: h100\n" + rule)
    given = asked(found)
    for name, parameters in given.items():
        of = {"train": "h100:2", "base": "h100:1", "evaluate": "l40s:1"}[name.split()[0]]
        assert parameters["gpus_per_node"] == of and gpus(parameters) == int(of[-1]), name
    assert "#SBATCH --gpus-per-node=h100:2" in "\n".join(preview.texts(found))
    assert "gpus_per_node" not in Resources(found.study.spec.launch, found.plan).close()


def test_training_and_evaluation_with_one_gpu_are_still_one_job(scored: Path) -> None:
    found = prepared(scored, "  device: cuda\n")
    asks = Resources(found.study.spec.launch, found.plan)
    assert len({asks.group(item) for item in preview.items(found.plan, found.tasks)}) == 1


def test_the_last_job_asks_for_one_processor_unless_a_rule_for_it_says_more(scored: Path) -> None:
    plain = prepared(scored, MANY.replace("account: ours", "cpus-per-task: 12"))
    assert Resources(plain.study.spec.launch).close()["cpus_per_task"] == 1
    scored.write_text(scored.read_text() + "  resources: [{work: close, slurm: {cpus-per-task: 4}}]\n")
    more = prepare.load(scored)
    assert Resources(more.spec.launch).close()["cpus_per_task"] == 4


def test_gpus_that_no_process_would_use_are_refused(scored: Path) -> None:
    with pytest.raises(UserError, match=r"launch\.gpus gives 8 GPUs a machine, and `ntasks_per_node: 1` would make 1"):
        preview.texts(prepared(scored, "  device: cuda\n  gpus: 8\n  slurm: {ntasks_per_node: 1}\n"))
