"""Submitit writes the sbatch files and calls sbatch; this is all that the harness adds to its Slurm executor.

Submitit's own jobs run a pickled function, which is renamed to the job's id after sbatch has answered: a controller
that is killed in between leaves jobs without work. Ours run a module of the code snapshot, which reads what to do from
the submission's folder, written before. So nothing is pickled, and the file can be given to sbatch by hand again.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

REFUSED = (FailedJobError, FailedSubmissionError, OSError)


class Submitter(SlurmExecutor):
    """Submits one array of `python -m MODULE FOLDER`. folder: of the submission; `submit.sbatch` is kept there."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any], array: str | None = None) -> None:
        """parameters: by Submitit's names. array: sbatch's words for the tasks, such as `0-35%8`; None for one job."""
        super().__init__(folder)
        given = {**parameters}
        more = dict(given.pop("additional_parameters", {}))
        if array is not None:
            more["array"] = array
        self.update_parameters(**given, additional_parameters=more)
        if array is not None:
            self.parameters["map_count"] = 1  # names the logs by array and task; `array` above says how many

    @classmethod
    def affinity(cls) -> int:
        return 2  # the text can be made without Slurm; whether it is here is asked before anything is submitted

    def text(self, module: str, arguments: list[str]) -> str:
        """The sbatch file."""
        return str(self._make_submission_file_text(self._command(module, arguments), "text"))

    def submit_module(self, module: str, arguments: list[str]) -> str:
        """Call sbatch. Returns Slurm's id of the job. Raises one of `REFUSED`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the exception, too
            job = self._submit_command(self._command(module, arguments))
        return str(job.job_id)

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        """Submitit takes the first `job 12` of all that was printed; a site's sbatch may print more than Slurm's own
        line, and what it says of other jobs must not be taken for ours."""
        said = string if isinstance(string, str) else string.decode(errors="replace")
        own = re.findall(r"^Submitted batch job (\d+)", said, re.MULTILINE)
        return own[-1] if own else str(SlurmExecutor._get_job_id_from_submission_command(said))

    def _command(self, module: str, arguments: list[str]) -> str:
        # -P: the folder in which somebody calls `ablate` is not searched for modules, it may hold other code.
        return shlex.join([sys.executable, "-u", "-P", "-m", module, *arguments])

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        shutil.copyfile(submission_file_path, self.folder / "submit.sbatch")
        command: list[str] = super()._make_submission_command(submission_file_path)
        return command

    def _write_job_id(self, job_id: str, uid: str) -> None:
        """Submitit's files under the job's id are the same text again."""
        for path in (self.folder / f".submission_file_{uid}.sh", self.folder / f"{job_id}_submission.sh"):
            path.unlink(missing_ok=True)


def setup_lines(snapshot: Path, threads: int) -> list[str]:
    """Shell lines before the work: the code of the snapshot goes before any other, and threads are fixed."""
    fixed = [f"export {name}={threads}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    path = shlex.quote(str(snapshot.resolve()))
    return [
        f"export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}",
        *fixed,
        "export TOKENIZERS_PARALLELISM=false",
    ]


def clients_missing() -> list[str]:
    """The programs of Slurm that submitting needs and this machine lacks."""
    return [name for name in ("sbatch", "squeue", "scancel", "scontrol") if shutil.which(name) is None]


def environment_without_slurm() -> dict[str, str]:
    """Forget the job that this process runs in: sbatch would take options from it (SLURM_*, SRUN_*). Options that a
    person has set for sbatch (SBATCH_*) would win over the study's; they are forgotten, too, and returned."""
    forgotten = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF"
    }
    return {name: value for name, value in forgotten.items() if name.startswith("SBATCH_")}
