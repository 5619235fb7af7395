"""What clusters refuse: arrays that are too long, too many jobs; and how much of one study they take at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.launch.slurm import client
from harness.store import submissions
from harness.store.atomic import read_json_lines
from harness.store.layout import Folder
from tests.slurm import cluster as slurm
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import use
from tests.slurm.studies import behave, finished, shim, starts, submit, words, write

RECORDED = Path(__file__).parent / "recorded"
MOST = 30  # tasks in the queue


@pytest.fixture(scope="module")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm.running(tmp_path_factory.mktemp("small") / "cluster", max_array_size=11) as cluster:
        yield cluster


@pytest.fixture
def small(_small: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose arrays have at most 11 tasks."""
    client.max_array_size.cache_clear()
    use(_small, monkeypatch)
    yield _small
    _small.clear()
    client.max_array_size.cache_clear()


# Stands in front of sbatch and refuses, in the words that Slurm was recorded with, what would be more than MOST tasks.
LIMIT = """\
for last; do :; done
new=$(sed -n 's/^#SBATCH --array=//p' "$last" | tr ',' '\\n' | sed 's/%.*//' |
  awk -F- '{n += NF > 1 ? $2 - $1 + 1 : 1} END {print n + 0}')
[ "$new" -gt 0 ] || new=1
there=$(squeue --noheader --array --states=PD,R,CF,CG | wc -l)
if [ $((there + new)) -gt MOST ]; then cat "REFUSAL" >&2; echo refused >>"LOG"; exit 1; fi
exec "$REAL" "$@"
"""


def test_a_hundred_runs_complete_with_short_arrays_and_a_full_queue(
    small: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "refusals"
    script = LIMIT.replace("MOST", str(MOST)).replace("LOG", str(log))
    shim(monkeypatch, tmp_path / "bin", "sbatch", script.replace("REFUSAL", str(RECORDED / "submit-limit.txt")))
    values = ", ".join(f"{0.01 * number:.2f}" for number in range(49))
    study = write(tmp_path, values=f"[{values}]")
    study.write_text(study.read_text().replace("control: more=0}", "allow: {default: [no-control]}}"))
    report, _ = submit(study)
    assert len(report.ended.runs) == 100
    folder = report.folder
    small.wait_for(lambda: set(words(folder).values()) == {"done"}, "a hundred runs", 600)
    finished(small)
    assert log.exists(), "the limit was met"
    assert set(starts(folder).values()) == {1}
    sizes = [len(submissions.read_elements(place)) for place in folder.all_submissions()]
    assert max(sizes) <= 11
    assert (folder.report / "index.html").exists()


def test_at_most_so_many_runs_at_once_over_all_arrays(small: Cluster, tmp_path: Path) -> None:
    values = ", ".join(f"{0.02 * number:.2f}" for number in range(11))
    study = write(tmp_path, launch="launch: {device: cpu, parallel: 3}\n", values=f"[{values}]")
    study.write_text(study.read_text().replace("control: more=0}", "allow: {default: [no-control]}}"))
    folder = Folder(tmp_path / "results")
    behave(
        folder, {f"more={0.02 * at:g}/d{seed}": {"steps": 1, "pause": 0.3} for at in range(1, 11) for seed in (1, 2)}
    )
    submit(study)
    finished(small, 200)
    assert set(words(folder).values()) == {"done"}
    at_once, most = 0, 0
    for line in read_json_lines(folder.root / "log.jsonl"):
        at_once += 1 if line["what"] == "start" else -1
        most = max(most, at_once)
    assert most <= 3
