"""A disk that is full at any write: one paragraph, nothing lost, and the next run ends at the undisturbed weights.

Kinds of write are enumerated: `test_every_file_is_written_by_a_known_kind_of_write` fails for a file that is written
past `store.atomic.writing`, and for a kind that is not in the table below. Each kind is then full from its first write
on, and where it is written many times also from a later one. Read the table as (what, exit code of `ablate run`).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from harness import cli
from harness.launch import verify
from harness.store import atomic, states
from harness.store.layout import Folder
from tests.proofs.ablate import disagreements, final_weights
from tests.proofs.small import Finished, write_small

STATE = r"states/\w+"
KINDS: dict[str, tuple[str, int]] = {
    "lock": (r"\.lock", 2),
    "study": (r"study\.yaml", 2),
    "plan": (r"plan\.json", 2),
    "run": (r"runs/.*/run\.json", 2),
    "base manifest": (r"manifests/base\.json", 2),
    "source manifest": (r"manifests/sources/\w+\.json", 2),
    "segment": (STATE + r"/segment\.json", 2),
    "report": (r"report/.*", 2),
    "report mark": (r"\.report\.json", 2),
    "checksums": (r"\.checksums\.json", 0),  # a cache: it can only cost time
    "claim": (STATE + r"/attempts", 1),
    "attempt": (STATE + r"/attempts/\d+/env\.json", 1),
    "pulse": (STATE + r"/attempts/\d+/pulse", 1),
    "events": (STATE + r"/events\.jsonl", 1),
    "metrics": (STATE + r"/attempts/\d+/metrics\.jsonl", 1),
    "checkpoint": (STATE + r"/checkpoints/\d+", 1),
    "model": (STATE + r"/checkpoints/\d+/model", 1),
    "optimizer": (STATE + r"/checkpoints/\d+/optimizer\.safetensors", 1),
    "cursor": (STATE + r"/checkpoints/\d+/cursor\.json", 1),
    "checkpoint marker": (STATE + r"/checkpoints/\d+/DONE\.json", 1),
    "state marker": (STATE + r"/DONE\.json", 1),
    "exit": (STATE + r"/attempts/\d+/exit\.json", 1),
    "evaluation": (r"evals/\w+/\w+", 1),
    "samples": (r"evals/\w+/\w+/samples\.parquet", 1),
    "results": (r"evals/\w+/\w+/results\.json", 1),
    "evaluation marker": (r"evals/\w+/\w+/DONE\.json", 1),
    "tokenizer": (r"tokenizers/[0-9a-f]+", 2),
    "recipe": (r"tokenizers/recipes/\w+\.json", 2),
    "token store": (r"tokens/\w+", 2),
    "token store's meta": (r"tokens/\w+/meta\.json", 2),
}
LATER = {"checkpoint": 3, "checkpoint marker": 4, "optimizer": 2, "metrics": 2, "events": 4, "state marker": 1}
QUICK = ("plan", "checkpoint", "results")


def kind_of(path: Path, root: Path) -> str:
    """The kind of a write under `root/out` or `root/cache`."""
    relative = Path(*path.relative_to(root).parts[1:]).as_posix()
    found = [kind for kind, (pattern, _) in KINDS.items() if re.fullmatch(pattern, relative)]
    assert len(found) == 1, f"{relative} is written by {found or 'no known kind of write'}"
    return found[0]


def bring(root: Path, study: Path) -> int:
    return cli.call(["run", str(study), "-o", str(root / "out"), "--executor", "debug"])


def test_every_file_is_written_by_a_known_kind_of_write(finished: Finished) -> None:
    root, written = finished.root, finished.written
    assert {kind_of(path, root) for path in written} == set(KINDS)
    known = set(written)
    for path in [*(root / "out").rglob("*"), *(root / "cache").rglob("*")]:
        if path.is_file() and path.name != ".checksums.json":
            assert known & {path, *path.parents}, f"{path} was written past the one place"


CASES = [(kind, 0) for kind in KINDS] + list(LATER.items())


@pytest.mark.parametrize(
    ("kind", "after"),
    [pytest.param(kind, after, marks=() if kind in QUICK and not after else pytest.mark.slow) for kind, after in CASES],
)
def test_a_full_disk_loses_nothing(
    kind: str,
    after: int,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, code = write_small(tmp_path), KINDS[kind][1]
    own_cache = re.match("token|recipe", kind) is not None
    monkeypatch.setenv("ABLATE_CACHE", str((tmp_path if own_cache else finished.root) / "cache"))
    hits: list[Path] = []

    def full(path: Path) -> None:
        if path.is_relative_to(tmp_path) and kind_of(path, tmp_path) == kind:
            hits.append(path)
            if len(hits) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "before_write", full)
    capsys.readouterr()
    assert bring(tmp_path, study) == code
    assert len(hits) > after
    said = capsys.readouterr()
    if code == 2:
        assert said.err.startswith("ablate: ") and len(said.err.splitlines()) == 1
        assert "no space is left on the disk" in said.err and "are free there" in said.err
    if code == 1:
        table = " ".join(said.out.split())
        assert "disk: " in table and "no space is left on the disk" in table and "are free there" in table
    assert not list(tmp_path.rglob("*.tmp"))
    if (tmp_path / "out" / "plan.json").exists():
        assert verify.damage(Folder(tmp_path / "out"))[1] == []

    monkeypatch.setattr(atomic, "before_write", lambda path: None)
    assert bring(tmp_path, study) == 0
    assert final_weights(tmp_path / "out") == final_weights(finished.root / "out")
    assert disagreements(tmp_path / "out") == []
    assert verify.damage(Folder(tmp_path / "out"))[1] == []
    assert served(tmp_path / "out") == served(finished.root / "out")  # the record of what was trained on is whole, too


def served(folder: Path) -> dict[str, object]:
    done = {state.id: states.read_done(state) for state in Folder(folder).all_states()}
    return {name: state and state.summary.get("served") for name, state in done.items()}
