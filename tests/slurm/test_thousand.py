"""A thousand runs: how often Slurm is asked, and that a status of them all is one look. The times are printed; those in
the README were taken with nothing else at work: `pytest -s tests/slurm/test_thousand.py`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from harness.launch import prepare
from harness.launch.status import status
from harness.store.layout import Folder
from tests.slurm.cluster import Cluster
from tests.slurm.studies import ablate, in_queue, shim, submit, write

COUNTED = ("sbatch", "squeue", "scontrol", "sacct")


def test_a_thousand_runs_are_submitted_in_few_calls_and_looked_at_in_one(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    log.touch()
    for name in COUNTED[:3]:
        shim(monkeypatch, tmp_path / "bin", name, f'echo {name} >>"{log}"; exec "$REAL" "$@"')

    def calls() -> Counter[str]:
        found = Counter(log.read_text().split())
        log.write_text("")
        return found

    cluster.command("scontrol", "update", "partitionname=low", "state=down")
    values = ", ".join(f"{0.002 * number:.3f}" for number in range(249))
    study = write(tmp_path, values=f"[{values}]", seeds="[1, 2, 3, 4]")
    study.write_text(study.read_text().replace("control: more=0}", "allow: {default: [no-control]}}"))
    root = tmp_path / "results"
    prepare.resolved_plan(prepare.load(study), Folder(root), True, print)  # tokenizes, and looks at the base model
    calls()

    begun = time.perf_counter()
    said = ablate("run", study, "-o", root, "--executor", "slurm")
    submitting, first = time.perf_counter() - begun, calls()
    assert in_queue() >= 1004 and first["squeue"] == 1 and first["sbatch"] <= 8, first
    log.write_text("")

    begun = time.perf_counter()
    ablate("run", study, "-o", root, "--executor", "slurm")
    ticking, second = time.perf_counter() - begun, calls()
    assert second == Counter(squeue=1), "nothing to submit"

    begun = time.perf_counter()
    found = status(Folder(root))
    looking, third = time.perf_counter() - begun, calls()
    assert len(found) == 1000 and {run.state for run in found} == {"queued"} and third == Counter(squeue=1)
    begun = time.perf_counter()
    ablate("status", root)
    command = time.perf_counter() - begun
    print(f"\n1,000 runs, 1,004 jobs in the queue: {first['sbatch']} calls of sbatch in {submitting:.1f} s; ", end="")
    print(f"a tick with nothing to do {ticking:.1f} s and 1 squeue; ", end="")
    print(f"status {looking:.2f} s, as a command {command:.1f} s")
    assert "calls of sbatch" in said
    assert submit(study)[0].ticked is not None
