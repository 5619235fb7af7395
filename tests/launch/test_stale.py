"""Changed code: what it made before is used, made again or refused, as the study says."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.launch import code, observe, prepare, stamp
from harness.launch.run import Report
from harness.store import states
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.launch.test_run import bring, options, path_of, starts


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the code has another hash; what was trained before was trained by other code."""
    for module in (code, observe, stamp):
        monkeypatch.setattr(module, "tree_hash", lambda: "f" * 64)


@pytest.fixture
def trained(scored: Path) -> Report:
    report, _ = bring(options(scored))
    return report


def trained_states(folder: Folder, since: int = 0) -> list[str]:
    return [item.removeprefix("train:") for item in starts(folder)[since:] if item.startswith("train:")]


def test_states_of_other_code_are_used_by_default_with_one_line_that_says_so(
    scored: Path, trained: Report, other_code: None
) -> None:
    before = starts(trained.folder)
    again, notes = bring(options(scored))
    assert starts(trained.folder) == before and again.ended.exit_code == 0
    said = [note for note in notes if "other code" in note]
    assert len(said) == 1 and "8 states" in said[0] and "stale: reuse" in said[0] and "stale=rerun" in said[0]
    states_in_plan = {s["state"] for s in read_json(trained.folder.plan_json)["segments"]}
    assert states_in_plan <= {"stale", "new"}


def test_an_arm_that_other_code_trained_beside_one_that_this_code_trained_is_a_finding(
    scored: Path, trained: Report, other_code: None
) -> None:
    scored.write_text(scored.read_text().replace("values: [0, 0.3]", "values: [0, 0.3, 0.4]"))
    bring(options(scored))
    lint = read_json(trained.folder.plan_json)["lint"]
    found = [(item["level"], item["arm"]) for item in lint if item["code"] == "different-code"]
    assert found == [("warning", "more=0.4")]
    scored.write_text(scored.read_text().replace("primary:", "allow: {more=0.4: [different-code]}, primary:"))
    bring(options(scored))
    assert not [i for i in read_json(trained.folder.plan_json)["lint"] if i["code"] == "different-code"]


def test_refused_states_stop_the_run_before_anything_is_done_and_are_named(
    scored: Path, trained: Report, other_code: None
) -> None:
    before = starts(trained.folder)
    with pytest.raises(UserError, match="default/d1, default/d2, more=0/d1") as caught:
        bring(options(scored, overrides=("stale=refuse",)))
    assert "8 states" in str(caught.value) and "\n" not in str(caught.value)
    assert starts(trained.folder) == before


def test_rerun_trains_every_state_of_other_code_again_once_and_keeps_the_old_attempts(
    scored: Path, trained: Report, other_code: None
) -> None:
    before = starts(trained.folder)
    asked = options(scored, overrides=("stale=rerun",))
    shown = prepare.planned(prepare.load(scored, asked.overrides), trained.folder).plan
    assert {segment.state for segment in shown.segments.values()} == {"stale"}
    assert all(segment.needed and segment.start_path is None for segment in shown.segments.values())
    again, _ = bring(asked)
    assert again.ended.exit_code == 0
    assert sorted(trained_states(trained.folder, len(before))) == sorted(trained_states(trained.folder)[:8])
    leaf = trained.folder.state(path_of(trained.folder, "more=0/d1")[-1])
    assert leaf.attempt_numbers() == [0, 1]
    assert not leaf.before.exists(), "the new one is whole, so the old one may go"
    after = starts(trained.folder)
    _, notes = bring(asked)
    assert starts(trained.folder) == after and notes == []
    assert not [i for i in read_json(trained.folder.plan_json)["lint"] if i["code"] == "different-code"]


def test_nothing_is_deleted_until_what_takes_its_place_is_whole(
    scored: Path, trained: Report, other_code: None
) -> None:
    folder = trained.folder
    leaf = folder.state(path_of(folder, "more=0/d1")[-1])
    old = states.read_done(leaf)
    write_json(folder.root / "behaviour.json", {"more=0/d1": {"end": "error"}})
    failed, _ = bring(options(scored, overrides=("stale=rerun",)))
    assert failed.ended.exit_code == 1
    assert old is not None and old.checkpoint is not None
    assert (leaf.before / "DONE.json").exists()
    assert (leaf.before / "checkpoints" / old.checkpoint / "DONE.json").exists()
    assert not leaf.done.exists()
    (folder.root / "behaviour.json").unlink()
    good, _ = bring(options(scored, overrides=("stale=rerun",)))
    assert good.ended.exit_code == 0 and leaf.done.exists() and not leaf.before.exists()


def test_what_was_made_from_a_stale_state_is_made_again_with_it(
    scored: Path, trained: Report, other_code: None
) -> None:
    folder = trained.folder
    trunk, _ = path_of(folder, "more=0/d1")
    for state in folder.all_states():  # all but the trunk of seed 1 are of the present code
        path = state.attempt(0) / "env.json"
        if path.exists() and state.id != trunk:
            env = read_json(path)
            write_json(path, {**env, "code": {"tree": "f" * 64}})
    before = len(starts(folder))
    bring(options(scored, overrides=("stale=rerun",)))
    again = trained_states(folder, before)
    own = {path_of(folder, f"{arm}/d1")[-1] for arm in ("default", "more=0", "more=0.3")}
    assert set(again) == {trunk} | own


def test_setting_aside_may_be_interrupted_anywhere_and_done_again(trained: Report) -> None:
    state = trained.folder.state(path_of(trained.folder, "more=0/d1")[-1])
    state.before.mkdir()
    state.done.rename(state.before / "DONE.json")  # killed after the first of its two steps
    states.set_aside(state)
    assert (state.before / "DONE.json").exists() and (state.before / "checkpoints" / "1").exists()
    (state.checkpoints / "7").mkdir(parents=True)  # begun anew, not whole, and stale again
    states.set_aside(state)
    assert (state.before / "checkpoints" / "1").exists() and not state.checkpoints.exists()
    states.forget_before(state)
    assert not state.before.exists()
