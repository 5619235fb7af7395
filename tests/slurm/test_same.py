"""The same study through Slurm and here gives the same bits; in several processes, the same losses to rounding."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.launch import run
from harness.launch.progress import Silent
from harness.launch.run import Options
from harness.launch.worker import PERFORM
from harness.store import attempts, metrics
from harness.store.atomic import read_json
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.launch.conftest import SCORED
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import REPOSITORY
from tests.slurm.real import LAUNCH, trunk, weights, write_real
from tests.slurm.studies import ablate, finished, submit

EVAL, COMPARE = SCORED.splitlines()[:2]


def local(study: Path, root: Path) -> Folder:
    report = run.run(Options(study, root, executor="local", overrides=("launch.nodes=1",)), Silent())
    assert report.ended.exit_code == 0
    return report.folder


def test_weights_scores_and_tables_are_those_of_the_local_executor(cluster: Cluster, tmp_path: Path) -> None:
    study = write_real(tmp_path, LAUNCH, "[1, 2]", "[0, 0.3]", more=EVAL + "\n")
    study.write_text(study.read_text().replace("compare: {control: more=0}", COMPARE))
    report, _ = submit(study, perform=PERFORM)
    finished(cluster, 150)
    here, there = local(study, tmp_path / "local"), report.folder
    assert weights(here) == weights(there)
    for name in ("table.csv", "claims.json"):
        assert (here.report / name).read_bytes() == (there.report / name).read_bytes(), name
    for path in sorted(here.report.glob("*.tex")):
        assert path.read_bytes() == (there.report / path.name).read_bytes(), path.name
    scored = {path.relative_to(here.root) for path in here.root.glob("evals/*/*/samples.parquet")}
    assert scored and scored == {path.relative_to(there.root) for path in there.root.glob("evals/*/*/samples.parquet")}
    for path in scored:
        assert (here.root / path).read_bytes() == (there.root / path).read_bytes()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_nodes_of_two_processes_have_the_losses_of_one_process(
    strategy: str, cluster: Cluster, tmp_path: Path
) -> None:
    launch = f"{{nodes: 2, strategy: {strategy}, slurm: {{ntasks_per_node: 2}}, {LAUNCH[1:]}"
    together = write_real(tmp_path / "together", launch, more=EVAL + "\n")
    report, _ = submit(together, perform=PERFORM)
    finished(cluster, 400)
    alone = local(write_real(tmp_path / "alone", more=EVAL + "\n"), tmp_path / "alone" / "results")
    env = attempts.read_env(trunk(report.folder), 0)
    assert env is not None and (env["numerics"]["world"], env["numerics"]["strategy"]) == (4, strategy)
    for run_json in read_json(alone.plan_json)["runs"]:
        for state in run_json["path"]:
            ours, theirs = (metrics.read_steps(folder.state(state)).rows for folder in (report.folder, alone))
            assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
            assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=2e-5)
            assert ours != theirs, "sums in another order"
    assert len(weights(report.folder)) == 2


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_is_submitted(
    cluster: Cluster, tmp_path: Path
) -> None:
    study = write_real(tmp_path, "{device: cpu, nodes: 3}")
    with pytest.raises(UserError, match=r"a batch of 4 rows of 64 tokens cannot be divided among 3 processes"):
        submit(study)
    assert not Folder(tmp_path / "results").all_submissions()
    with pytest.raises(UserError, match=r"launch\.gpus asks for GPUs that `launch\.device: cpu` would not use"):
        submit(write_real(tmp_path, "{device: cpu, gpus: 2}"))


SECRET = "hf_9f8e7d6c5b4a39281706"


def test_jobs_run_the_code_that_was_there_at_submission_and_no_secret_is_written(
    cluster: Cluster, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    for package in ("harness", "analysis"):
        shutil.copytree(REPOSITORY / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(code), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    loop = code / "harness" / "train" / "loop.py"
    loop.write_text(loop.read_text() + "# an edit before submission\n")
    stubs = os.pathsep.join(str(REPOSITORY / "tests" / name) for name in ("launch", "slurm"))
    env = {"PYTHONPATH": os.pathsep.join([str(code), stubs]), "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}

    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    study, root = write_real(tmp_path), tmp_path / "results"
    ablate("run", study, "-o", root, "--executor", "slurm", env=env, cwd=code)
    for path in (loop, code / "harness" / "launch" / "slurm" / "job.py", code / "analysis" / "report.py"):
        path.write_text("raise SystemExit('edited after submission')\n")
    cluster.command("scontrol", "update", "partitionname=low", "state=up")
    finished(cluster, 150)

    folder = Folder(root)
    assert weights(folder) == weights(local(study, tmp_path / "local"))
    assert (folder.report / "index.html").exists()
    (snapshot,) = [path for path in folder.snapshots.iterdir() if path.is_dir()]
    assert "+# an edit before submission" in (snapshot / "dirty.diff").read_text()
    for state in folder.all_states():
        for number in state.attempt_numbers():
            ran = attempts.read_env(state, number)
            assert ran is not None and (ran["code"]["tree"], ran["code"]["dirty"]) == (snapshot.name, True)
    leaked = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert leaked == []
