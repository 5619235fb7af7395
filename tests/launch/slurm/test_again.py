"""What a tick does that has only the results folder: the last job's, `status --watch`, `ablate retry`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.launch import run
from harness.launch.plan_files import evaluation_options, recorded_options
from harness.launch.progress import Silent
from harness.launch.slurm import bring, client, close, people
from harness.launch.slurm.again import again
from harness.launch.slurm.submit import Refused, Submitter
from harness.launch.slurm.watch import Ticker
from harness.launch.status import status
from harness.store.layout import Folder
from harness.store.submissions import Intent
from harness.study.errors import UserError
from tests.launch.slurm.fake import STUB, FakeSlurm, fake_slurm, submit


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return fake_slurm(monkeypatch)


def kinds(slurm: FakeSlurm, folder: Folder, first: int) -> set[str]:
    """Kinds of the items in the submissions from `first` on."""
    from harness.store import submissions

    found = [place for place in folder.all_submissions() if place.number >= first]
    return {item["kind"] for place in found for element in submissions.read_elements(place) for item in element.items}


def evaluate(folder: Folder, executor: str) -> None:
    asked = evaluation_options(folder.root, [], executor, None)  # type: ignore[arg-type]
    run.run(replace(asked, perform=STUB), Silent())


def some_states(study: Path, slurm: FakeSlurm) -> Folder:
    """A study of which all is trained but one run, and nothing evaluated."""
    root = study.parent / "results"
    root.mkdir()
    (root / "behaviour.json").write_text(
        '{"more=0/d1": {"end": "error"}, "default/d1": {"kind": "evaluate", "end": "error"}}'
    )
    run.run(run.Options(study, root, executor="debug", perform=STUB), Silent())
    (root / "behaviour.json").unlink()
    return Folder(root)


@pytest.mark.parametrize("executor", ["debug", "slurm"])
def test_jobs_that_failed_are_submitted_again_although_somebody_has_evaluated_meanwhile(
    scored: Path, slurm: FakeSlurm, executor: str
) -> None:
    folder = some_states(scored, slurm)
    submit(scored)
    assert "train" in kinds(slurm, folder, 0)
    evaluate(folder, executor)
    before = len(folder.all_submissions())
    slurm.lose_everything()
    report = again(folder, Silent(), last=False, perform=STUB)
    assert report is not None and "train" in kinds(slurm, folder, before)


def test_retry_trains_after_an_evaluation_of_what_was_there(scored: Path, slurm: FakeSlurm) -> None:
    folder = some_states(scored, slurm)
    evaluate(folder, "slurm")
    assert kinds(slurm, folder, 0) == {"evaluate"}
    slurm.lose_everything()
    before = len(folder.all_submissions())
    people.retry(folder, [], None)
    run.run(replace(recorded_options(folder.root), executor="slurm", perform=STUB), Silent())
    assert "train" in kinds(slurm, folder, before)


def test_the_last_job_of_an_evaluation_trains_nothing(scored: Path, slurm: FakeSlurm) -> None:
    folder = some_states(scored, slurm)
    evaluate(folder, "slurm")
    slurm.lose_everything()
    again(folder, Silent(), last=False, perform=STUB)
    assert kinds(slurm, folder, 0) == {"evaluate"}


def test_an_evaluation_keeps_what_was_said_of_the_budget(scored: Path, slurm: FakeSlurm) -> None:
    folder = some_states(scored, slurm)
    submit(scored, yes=True)
    evaluate(folder, "debug")
    assert recorded_options(folder.root).yes


def test_a_folder_of_before_that_names_fewer_things_is_read(scored: Path, slurm: FakeSlurm) -> None:
    from harness.store.atomic import read_json, write_json

    folder = some_states(scored, slurm)
    plan = read_json(folder.plan_json)
    plan["asked"] = {name: plan["asked"][name] for name in ("file", "set")}
    write_json(folder.plan_json, plan)
    options = recorded_options(folder.root)
    assert (options.suites, options.yes, options.train) == ((), False, True)


def test_the_last_job_finds_the_study_of_a_folder_behind_a_link(scored: Path, slurm: FakeSlurm, tmp_path: Path) -> None:
    """Jobs are given the folder's real name, whatever link a person has used."""
    real = tmp_path / "scratch" / "disk" / "tiny"
    real.mkdir(parents=True)
    (tmp_path / "results").symlink_to(real)
    submit(scored)
    slurm.lose_everything()
    report = again(Folder(real), Silent(), last=True, perform=STUB)
    assert report is not None and report.ticked is not None and report.ticked.submitted


def answers(slurm: FakeSlurm, patch: pytest.MonkeyPatch, silent: range, then: Callable[[], None]) -> list[int]:
    """Have Slurm not answer the looks whose numbers are in `silent`; `then`: called before the look after those."""
    looks: list[int] = []

    def look(folder: Folder) -> client.Queue:
        looks.append(len(looks))
        assert len(looks) < 50, "nobody hears that it is to stop"
        if looks[-1] in silent:
            raise client.Unreachable("`squeue` has not answered")
        if looks[-1] == silent.stop:
            then()
        return slurm.look(folder)

    patch.setattr(client, "look", look)
    return looks


def test_who_waits_outlasts_a_slurm_that_does_not_answer_for_a_while(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    listener = Silent()
    monkeypatch.setattr(listener, "note", notes.append)
    monkeypatch.setattr(bring, "FIRST_POLL", 0.0)
    looks = answers(slurm, monkeypatch, range(1, 4), lambda: os.kill(os.getpid(), signal.SIGTERM))
    asked = run.Options(scored, scored.parent / "results", executor="slurm", wait=True, perform=STUB)
    report = run.run(asked, listener)
    assert len(looks) == 5 and report.ended.signal == signal.SIGTERM
    assert notes.count("waiting for Slurm: `squeue` has not answered") == 1


def test_the_last_job_outlasts_a_slurm_that_does_not_answer_for_a_while(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scored)
    slurm.lose_everything()
    folder = Folder(scored.parent / "results")
    before = len(folder.all_submissions())
    monkeypatch.setattr(close, "PAUSE_SECONDS", 0.0)
    looks = answers(slurm, monkeypatch, range(3), lambda: None)
    close.close(folder, STUB)
    assert len(looks) == 4 and len(folder.all_submissions()) > before
    assert (folder.report / "index.html").exists()


def test_a_folder_whose_name_slurm_would_read_otherwise_is_refused_before_anything_is_made(
    scored: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """`%u` in the name of an output file is the user: such jobs die before their first word, the last one, too."""
    for name in ("half%math", "two\nlines", "back\\slash"):
        with pytest.raises(UserError, match="which Slurm takes for something else"):
            submit(scored, folder=tmp_path / name)
        assert not (tmp_path / name).exists()


def test_a_refusal_says_what_slurm_had_taken_before_it(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(submitter: Submitter, place: Path, intent: Intent, array: str | None) -> str:
        if len(slurm.intents) == 1 and intent.kind == "work":
            raise Refused("sbatch refused a submission: invalid partition", limit=False)
        return slurm.sbatch(submitter, place, intent, array)

    monkeypatch.setattr(Submitter, "_sbatch", sbatch)
    with pytest.raises(
        UserError, match=r"invalid partition\. What was submitted before it stays in the queue \(job 1\)"
    ):
        submit(scored)
    assert slurm.intents[-1].kind == "close", "which brings the folder on when those have ended"


def notes_of(study: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """What a person is told by `ablate run --executor slurm`."""
    notes: list[str] = []
    listener = Silent()
    patch.setattr(listener, "note", notes.append)
    run.run(run.Options(study, study.parent / "results", executor="slurm", perform=STUB), listener)
    return notes


def test_jobs_of_what_the_study_does_not_ask_for_any_more_are_named_and_can_be_cancelled(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who changes a rate or takes an arm away and calls again believes that the old jobs are gone."""
    text = scored.read_text()
    folder = Folder(scored.parent / "results")
    assert not any("any more" in note for note in notes_of(scored, monkeypatch))
    before = set(slurm.jobs)
    scored.write_text(text.replace("lr: 3.0e-3", "lr: 2.0e-3"))
    (note,) = [note for note in notes_of(scored, monkeypatch) if "any more" in note]
    assert "goes on with work that the study does not ask for any more" in note and "`scancel " in note
    named = note.partition("`scancel ")[2].partition("`")[0].split()
    assert {word.partition("_")[0] for word in named} <= before
    assert people.cancel(folder, []).kept == 0
    assert {intent.kind for intent in slurm.jobs.values()} == {"close"}, "all work is out of the queue"


def test_a_run_that_the_study_has_no_more_is_shown_with_its_job_and_cancelled_by_its_name(
    scored: Path, slurm: FakeSlurm
) -> None:
    folder = Folder(scored.parent / "results")
    submit(scored)
    scored.write_text(scored.read_text().replace("values: [0, 0.3]", "values: [0]"))
    submit(scored)
    orphan = next(run for run in status(folder) if run.name == "more=0.3/d1")
    assert orphan.state == "orphan" and "goes on" in orphan.detail
    people.cancel(folder, ["more=0.3"])
    orphan = next(run for run in status(folder) if run.name == "more=0.3/d1")
    assert "goes on" not in orphan.detail
    with pytest.raises(UserError, match=r"no run `more=0\.3/d`; did you mean `more=0\.3/d\d`"):
        people.cancel(folder, ["more=0.3/d"])


def test_a_cancel_that_slurm_does_not_hear_of_has_asked_for_nothing(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scored)
    folder = Folder(scored.parent / "results")
    answers(slurm, monkeypatch, range(1), lambda: None)
    with pytest.raises(client.Unreachable):
        people.cancel(folder, [])
    assert not list(folder.submissions.glob("asked/*"))


def test_ctrl_c_while_it_submits_lets_it_end_and_is_heard_then(
    scored: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sbatch(submitter: Submitter, place: Path, intent: Intent, array: str | None) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return slurm.sbatch(submitter, place, intent, array)

    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "_sbatch", sbatch)
        report = submit(scored)
    assert report.ended.exit_code == 130 and slurm.intents[-1].kind == "close"
    assert not submit(scored).ticked.submitted  # type: ignore[union-attr]
    slurm.lose_everything()
    monkeypatch.setattr(Submitter, "_sbatch", sbatch)
    with pytest.raises(KeyboardInterrupt):
        Ticker(report.folder).tick()
