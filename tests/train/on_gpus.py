"""`python -m tests.train.on_gpus FOLDER WORLD STRATEGY`: a segment trained on so many GPUs of this machine, stopped
half-way and finished on one; its losses go to FOLDER/losses.json. A program, since CUDA does not survive a fork."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness.store.metrics import read_steps
from harness.train.numerics import Numerics, set_threads
from harness.train.ranks import Ranks
from harness.train.segment import TrainSettings, train_segment
from tests.train.build import StudyFolder, stopping
from tests.train.groups import END, path


def declared(folder: Path) -> tuple[StudyFolder, str]:
    study = StudyFolder(folder)
    return study, study.declare(path(precision="bf16-mixed"), [END])[0]


def work(folder: Path, rank: int, world: int, strategy: str, steps: int | None) -> None:
    study, name = declared(folder)
    ranks = Ranks.join(rank, world, rank, folder / f"meet-{world}-{steps}", "cuda")
    numerics = Numerics.resolve("cuda")
    set_threads(numerics)
    with stopping(steps):
        train_segment(study.folder, name, TrainSettings(numerics, strategy=strategy), ranks=ranks)
    ranks.leave()


def main(folder: Path, world: int, strategy: str) -> None:
    study, name = declared(folder)
    for processes, how, steps in ((world, strategy, "6"), (1, "auto", "")):
        call = [sys.executable, "-m", "tests.train.on_gpus", str(folder), str(processes), how, steps]
        running = [subprocess.Popen([*call, str(rank)]) for rank in range(processes)]
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit("a process failed")
    (folder / "losses.json").write_text(json.dumps([row["loss"] for row in read_steps(study.state(name)).rows]))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        _, folder_, world_, strategy_, steps_, rank_ = sys.argv
        work(Path(folder_), int(rank_), int(world_), strategy_, int(steps_) if steps_ else None)
