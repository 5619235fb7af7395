"""What may go from a results folder: never what the study needs, nor what something unfinished starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import cli
from harness.launch import verify
from harness.launch.gc import Garbage, collect, garbage
from harness.launch.slurm import client
from harness.store import states
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.launch.slurm.fake import fake_slurm, submit
from tests.launch.test_run import bring, options, starts


@pytest.fixture
def folder(scored: Path) -> Folder:
    report, _ = bring(options(scored))
    return report.folder


def kinds(found: Garbage) -> dict[str, int]:
    return {kind: sum(waste.kind == kind for waste in found.found) for kind in {waste.kind for waste in found.found}}


def without_arm(scored: Path) -> None:
    scored.write_text(scored.read_text().replace("values: [0, 0.3]", "values: [0]"))
    bring(options(scored))


def test_a_study_that_is_done_needs_all_that_it_has(folder: Folder) -> None:
    assert garbage(folder).found == () and garbage(folder).text() == "nothing to remove"


def test_an_arm_that_the_study_has_no_more_goes_and_the_study_stays_whole(scored: Path, folder: Folder) -> None:
    before = {state.id for state in folder.all_states()}
    without_arm(scored)
    found = garbage(folder)
    assert kinds(found) == {"orphan": 2} and found.bytes > 0
    assert {state.id for state in folder.all_states()} == before, "looking removes nothing"
    collect(found)
    assert len(before) - len(folder.all_states()) == 2
    assert verify.damage(folder)[1] == []
    count = len(starts(folder))
    bring(options(scored))
    assert len(starts(folder)) == count, "nothing is done again"


def test_what_an_unfinished_state_starts_from_is_not_touched(scored: Path, folder: Folder) -> None:
    scored.write_text(
        scored.read_text().replace("lr: {shape: constant, warmup: 2560}", "lr: {shape: constant, warmup: 1280}")
    )
    bring(options(scored))  # other trunks: the earlier ones and all that came of them are orphans
    everything = garbage(folder)
    orphans = {waste.path.name for waste in everything.found}
    child = next(state for state in folder.all_states() if state.id in orphans and parent(folder, state.id) in orphans)
    child.done.unlink()
    left = garbage(folder)
    trunk = parent(folder, child.id)
    assert trunk not in {waste.path.name for waste in left.found}
    assert (trunk, "a state that starts from it is not finished") in left.spared
    assert orphans - {waste.path.name for waste in left.found} == {trunk}


def parent(folder: Folder, name: str) -> str:
    return str(states.read_segment(folder.state(name)).get("parent"))


def test_checkpoints_go_that_a_narrower_keep_lets_go_of(unscored: Path) -> None:
    """With the stub's only checkpoint kept beside copies at other places, as `keep: all` had left them."""
    report, _ = bring(options(unscored))
    folder = report.folder
    done = [state for state in folder.all_states() if (read := states.read_done(state)) and read.checkpoint]
    for state in done:
        final = state.checkpoints / str(states.read_done(state).checkpoint)  # type: ignore[union-attr]
        shutil.copytree(final, state.checkpoint(0))
    found = garbage(folder)
    assert {waste.path.name for waste in found.found if waste.kind == "checkpoint"} == {"0"}
    collect(found)
    assert verify.damage(folder)[1] == []
    assert garbage(folder).found == ()


def test_leftovers_and_old_snapshots_go(folder: Folder) -> None:
    state = folder.all_states()[0]
    (state.checkpoints / ".12.x.tmp").mkdir()
    (state.checkpoints / ".12.x.tmp" / "model.safetensors").write_bytes(b"0" * 100)
    for name in ("a" * 64, "b" * 64):
        (folder.snapshots / name).mkdir(parents=True)
        (folder.snapshots / name / "code.py").write_bytes(b"1" * 10)
    found = garbage(folder)
    assert kinds(found) == {"leftover": 1, "snapshot": 1} and found.bytes == 110
    collect(found)
    assert len(list(folder.snapshots.iterdir())) == 1


def test_the_verb_shows_bytes_and_removes_with_yes_alone(
    scored: Path, folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    without_arm(scored)
    capsys.readouterr()
    assert cli.call(["gc", str(folder.root)]) == 0
    said = capsys.readouterr().out
    assert "orphan" in said and f"`ablate gc {folder.root} --yes` removes them" in said
    assert cli.call(["gc", str(folder.root), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["removed"] is False and listed["bytes"] == sum(one["bytes"] for one in listed["found"]) > 0
    assert all((folder.root / one["path"]).exists() for one in listed["found"])
    assert cli.call(["gc", str(folder.root), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"] == listed["found"]
    assert not any((folder.root / one["path"]).exists() for one in listed["found"])
    assert cli.call(["gc", str(folder.root)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_finished_study_of_a_cluster_is_cleared_where_there_is_no_slurm(
    scored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing goes while jobs may be in a queue that does not answer; of tasks that were seen to leave none is."""

    def nobody(folder: Folder) -> client.Queue:
        raise client.Unreachable("`squeue` is not on this machine")

    with monkeypatch.context() as patch:
        slurm = fake_slurm(patch)
        folder = submit(scored).folder
        slurm.lose_everything()
    bring(options(scored))
    monkeypatch.setattr(client, "look", nobody)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nothing is known of the jobs"):
        garbage(folder)
    with monkeypatch.context() as patch:
        slurm = fake_slurm(patch)
        submit(scored)  # looks at the queue, and writes down that they have left
    assert garbage(folder).found == ()
