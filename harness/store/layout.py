"""Where things are in a results folder: every on-disk name in one place."""

from __future__ import annotations

from pathlib import Path


def _numbered(folder: Path) -> list[int]:
    """The numbers that name what lies in `folder`, ascending; none where it is not there (any more)."""
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []


class Folder:
    """A study's results folder. Nothing is created by naming it."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.study_yaml = self.root / "study.yaml"
        self.plan_json = self.root / "plan.json"
        self.manifests = self.root / "manifests"
        self.base_manifest = self.manifests / "base.json"
        self.states = self.root / "states"
        self.runs = self.root / "runs"
        self.evals = self.root / "evals"
        self.models = self.root / "models"  # outside models: rows that no arm made
        self.report = self.root / "report"
        self.track = self.root / "track"
        self.submissions = self.root / "submissions"
        self.snapshots = self.root / "snapshots"

    def submission(self, number: int) -> SubmissionFolder:
        return SubmissionFolder(self.submissions / str(number))

    def all_submissions(self) -> list[SubmissionFolder]:
        """What was submitted to Slurm, in order."""
        return [self.submission(number) for number in _numbered(self.submissions)]

    def source_manifest(self, name: str) -> Path:
        return self.manifests / "sources" / f"{name}.json"

    def state(self, fingerprint: str) -> StateFolder:
        return StateFolder(self.states / fingerprint)

    def all_states(self) -> list[StateFolder]:
        """Every state folder there is, wanted by the plan or not, in name order."""
        if not self.states.is_dir():
            return []
        return [StateFolder(path) for path in sorted(self.states.iterdir()) if path.is_dir()]

    def run_json(self, arm: str, seeds: str) -> Path:
        return self.runs / arm / seeds / "run.json"

    def model_json(self, name: str) -> Path:
        return self.models / f"{name}.json"

    def evaluation(self, weights: str, key: str) -> Path:
        return self.evals / weights / key

    def sent(self, destination: str, run: str) -> Path:
        return self.track / "sent" / destination / f"{run}.json"

    def track_status(self, destination: str) -> Path:
        return self.track / "sent" / f"{destination}.json"


class StateFolder:
    """One segment's work and the state at its end."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.segment_json = self.root / "segment.json"
        self.events = self.root / "events.jsonl"
        self.attempts = self.root / "attempts"
        self.checkpoints = self.root / "checkpoints"
        self.done = self.root / "DONE.json"
        self.before = self.root / "before"  # what other code made, until what takes its place is whole

    @property
    def id(self) -> str:
        return self.root.name

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts that have begun, ascending."""
        return _numbered(self.attempts)

    def checkpoint(self, tokens: int) -> Path:
        return self.checkpoints / str(tokens)

    def checkpoint_tokens(self) -> list[int]:
        """Tokens of the checkpoint folders that are there, complete or not, ascending."""
        return _numbered(self.checkpoints)


class SubmissionFolder:
    """One call of sbatch: what it was for, its text, and what its jobs say of themselves."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.elements = self.root / "array.jsonl"  # line i: what the task with index i does
        self.intent = self.root / "intent.json"  # written before sbatch is called
        self.sbatch = self.root / "submit.sbatch"
        self.job = self.root / "job.json"  # Slurm's id of it
        self.void = self.root / "void.json"  # it was never accepted, and must do nothing if it turns up after all
        self.gone = self.root / "gone.json"  # how each task left Slurm, as seen by a tick
        self.logs = self.root / "log"

    @property
    def number(self) -> int:
        return int(self.root.name)

    def log(self, index: int) -> Path:
        return self.logs / f"{index}.jsonl"

    def printed(self, task: str) -> list[Path]:
        """What the processes of a task (`12`, `12_3`) have printed around their work, as Slurm keeps it."""
        return sorted(self.root.glob(f"{task}_[0-9]*_log.*"))

    def meeting(self, index: int, life: str) -> Path:
        """Where the processes of one life of a task find one another."""
        return self.root / "meet" / f"{index}-{life}"
