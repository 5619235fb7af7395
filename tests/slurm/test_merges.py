"""Merges on a real Slurm: one starts when the jobs of all of its parts have ended, and goes the way of its parts."""

from __future__ import annotations

from pathlib import Path

from harness.launch.status import status
from harness.store.atomic import read_json, read_json_lines
from harness.store.layout import Folder
from tests.launch.conftest import TINY
from tests.slurm.cluster import Cluster
from tests.slurm.studies import CPU, behave, finished, is_done, last_state, starts, submit, words

MERGE = """\
merge:
  soup: {of: seeds, arm: more=0.3}
  both: {of: arms, arms: [more=0, more=0.3]}
  wsm: {of: checkpoints, arm: trunk, over: 2560, every: 1280, decay: linear}
"""
TRUNK = "  - cases: {trunk: {stages.decay.lr: {shape: constant}}}\n"
ALLOW = "{trunk: [schedule-open], soup: [unequal-tokens], both: [unequal-tokens]}"
RUNS = ("soup/d1+d2", "both/d1", "both/d2", "wsm/d1", "wsm/d2")


def write(folder: Path, merge: str = MERGE) -> Path:
    path = folder / "tiny.yaml"
    text = TINY.replace("seeds: {", f"{TRUNK}{merge}seeds: {{")
    allow = ALLOW if merge else "{trunk: [schedule-open]}"
    path.write_text(f"{text}compare: {{control: more=0, allow: {allow}}}\n{CPU}")
    return path


def calls(folder: Folder) -> int:
    return len(folder.all_submissions())


def test_merges_begin_after_all_of_their_parts_and_take_one_more_call(cluster: Cluster, tmp_path: Path) -> None:
    plain, _ = submit(write(tmp_path, merge=""), folder=tmp_path / "plain")
    report, _ = submit(write(tmp_path))
    assert calls(report.folder) <= calls(plain.folder) + 1
    finished(cluster)
    assert set(words(report.folder).values()) == {"done"}
    assert set(starts(report.folder).values()) == {1}
    log = [(line["what"], line["id"]) for line in read_json_lines(report.folder.root / "log.jsonl")]
    plan = read_json(report.folder.plan_json)
    parents = {segment["id"]: segment["parents"] for segment in plan["segments"]}
    for name in RUNS:
        state = last_state(report.folder, name)
        begun = log.index(("start", f"merge:{state}"))
        assert len(parents[state]) >= 2
        assert all(log.index(("end", f"train:{part}")) < begun for part in parents[state]), name


def test_a_part_that_fails_holds_its_merges_and_no_other(cluster: Cluster, tmp_path: Path) -> None:
    study = write(tmp_path)
    behave(Folder(tmp_path / "results"), {"more=0.3/d2": {"end": "error"}})
    report, _ = submit(study)
    finished(cluster)
    done = {name: is_done(report.folder, last_state(report.folder, name)) for name in RUNS}
    assert done == {"soup/d1+d2": False, "both/d1": True, "both/d2": False, "wsm/d1": True, "wsm/d2": True}
    assert not [item for item in starts(report.folder) if item == f"merge:{last_state(report.folder, 'both/d2')}"]
    assert {run.name for run in status(report.folder) if run.state != "done"} == {
        *("more=0.3/d2", "soup/d1+d2", "both/d2"),
    }
