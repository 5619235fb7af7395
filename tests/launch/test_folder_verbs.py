"""The verbs that read a results folder: status, logs, verify, export, eval."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from harness import cli
from harness.launch import logs, verify
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from harness.launch.status import status, text
from harness.launch.streams import pending
from harness.store import attempts, submissions
from harness.store.atomic import read_json, write_json
from harness.store.layout import Folder
from tests.launch.slurm.fake import fake_slurm, submit

STUB = "stub_work:perform"


@pytest.fixture
def results(unscored: Path) -> Folder:
    """Six runs: one diverged, one failed, four done."""
    root = unscored.parent / "results"
    write_json(root / "behaviour.json", {"more=0/d1": {"end": "error"}, "more=0/d2": {"end": "diverged"}})
    return run(Options(unscored, root, executor="debug", perform=STUB), Silent()).folder


def end_of(folder: Folder, arm: str, seeds: str) -> str:
    return str(read_json(folder.run_json(arm, seeds))["path"][-1])


def test_status_has_a_line_for_each_run_in_80_columns(results: Folder) -> None:
    runs = status(results)
    assert {run.name: run.state for run in runs} == {
        "default/d1": "done",
        "default/d2": "done",
        "more=0/d1": "failed",
        "more=0/d2": "diverged",
        "more=0.3/d1": "done",
        "more=0.3/d2": "done",
    }
    lines = text(runs).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(any(line.startswith(run.name) for run in runs) for line in lines) == 6
    assert "a number that cannot be" in next(run.detail for run in runs if run.name == "more=0/d1")


def test_a_run_whose_process_is_gone_without_a_word_is_called_killed(results: Folder) -> None:
    state = results.state(end_of(results, "more=0", "d1"))
    attempt = attempts.begin(state, {})
    env = read_json(attempt.folder / "env.json")
    write_json(attempt.folder / "env.json", {**env, "started": env["started"] - 1})
    found = next(run for run in status(results) if run.name == "more=0/d1")
    assert found.state == "failed" and "killed" in found.detail
    assert found.attempts == 3  # the trunk's, the one that failed, and this one


def test_status_json_is_one_object(results: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["status", str(results.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 6 and {"state", "step", "eta", "checkpoint"} <= found["runs"][0].keys()


def test_verify_names_every_damaged_file_and_leaves_with_1(results: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["verify", str(results.root)]) == 0
    first = results.state(end_of(results, "default", "d1")).checkpoint(1) / "model" / "model.safetensors"
    second = results.state(end_of(results, "default", "d2")).done
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.write_bytes(b"")
    capsys.readouterr()
    assert cli.call(["verify", str(results.root), "--json"]) == 1
    damage = json.loads(capsys.readouterr().out)["damage"]
    assert (
        len(damage) == 2 and any(str(first) in item for item in damage) and any(str(second) in item for item in damage)
    )


def test_a_run_that_several_processes_have_trained_is_not_called_different(
    results: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = results.state(str(read_json(results.run_json("default", "d1"))["path"][0]))
    env = read_json(trunk.attempt(0) / "env.json")
    write_json(trunk.attempt(0) / "env.json", {**env, "numerics": {**env["numerics"], "world": 8, "strategy": "fsdp"}})
    assert cli.call(["verify", str(results.root), "default/d1"]) == 2
    said = capsys.readouterr().err
    assert "default/d1 was trained by 8 processes together (fsdp; state" in said and "to rounding" in said


def test_verify_does_not_trust_the_cache(results: Folder) -> None:
    write_json(results.root / ".checksums.json", {"schema": 1, "files": {}})
    model = results.state(end_of(results, "default", "d1")).checkpoint(1) / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    assert len(verify.damage(results)[1]) == 1


def test_a_run_of_another_name_is_refused_with_the_nearest(results: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (["logs", str(results.root), "more=0/d3"], ["verify", str(results.root), "more=0/d3"]):
        assert cli.call(call) == 2
        assert "did you mean `more=0/d2`?" in capsys.readouterr().err


def test_export_copies_the_model_with_a_card(
    results: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert cli.call(["export", str(results.root), "more=0.3/d1", str(out)]) == 0
    end = end_of(results, "more=0.3", "d1")
    assert (out / "model.safetensors").read_text() == end
    card = (out / "README.md").read_text()
    assert "more=0.3/d1" in card and end in card and "stages.decay.mixture" in card
    for which, said in [
        ("more=0.3/d1", "exists already"),
        ("more=0.3", "name one of them: more=0.3/d1, more=0.3/d2"),
        ("more=0.4/d1", "no arm `more=0.4`"),
        ("more=0/d2", "diverged"),
        ("more=0/d1", "not finished"),
    ]:
        capsys.readouterr()
        target = out if "exists" in said else tmp_path / "other"
        assert cli.call(["export", str(results.root), which, str(target)]) == 2
        assert said in capsys.readouterr().err
    assert cli.call(["export", str(results.root), "more=0.3/d1", str(out / "README.md" / "below")]) == 2
    assert "README.md is a file, so" in capsys.readouterr().err


def test_logs_show_what_the_work_printed(unscored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = unscored.parent / "results"
    run(Options(unscored, root, executor="local", perform=STUB), Silent())
    capsys.readouterr()
    assert cli.call(["logs", str(root), "default/d1"]) == 0
    shown = capsys.readouterr().out
    end = end_of(Folder(root), "default", "d1")
    assert f"working on {end}" in shown and f"==> {end[:12]} attempt 0, trained, stdout <==" in shown


def test_what_is_followed_is_shown_once_although_it_moves_into_its_attempt(
    unscored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(Options(unscored, unscored.parent / "results", executor="local", perform=STUB), Silent()).folder
    state = folder.state(end_of(folder, "default", "d1"))
    before, after = pending(state, "train", "stdout"), state.attempt(0) / "stdout"
    after.rename(before)
    out = io.StringIO()

    def meanwhile(seconds: float) -> None:
        if not before.exists():
            raise KeyboardInterrupt
        with before.open("a") as file:
            file.write("the end\n")
        before.rename(after)

    monkeypatch.setattr(logs.time, "sleep", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        logs.show(folder, "default/d1", out, follow=True)
    shown = out.getvalue()
    assert shown.count(f"working on {state.id}") == shown.count("the end") == 1


def test_of_a_job_that_died_before_its_first_word_logs_show_what_it_printed(
    unscored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = fake_slurm(monkeypatch)
    folder = submit(unscored).folder
    for place in folder.all_submissions():
        job = submissions.read_job(place)
        for index in range(slurm.jobs[str(job)].count):
            task = f"{job}_{index}" if slurm.jobs[str(job)].array else job
            (place.root / f"{task}_0_log.err").write_text(f"{task}: module: command not found\n")
    slurm.lose_everything()
    capsys.readouterr()
    assert cli.call(["logs", str(folder.root), "more=0.3/d1"]) == 0
    shown = capsys.readouterr().out
    mine = {f"train:{name}" for name in read_json(folder.run_json("more=0.3", "d1"))["path"]}
    tasks = {
        (submissions.read_job(place), index)
        for place in folder.all_submissions()
        for index, element in enumerate(submissions.read_elements(place))
        if mine & set(element.ids)
    }
    assert tasks and shown.count("module: command not found") >= len(tasks)
    assert all(f"==> job {job}" in shown for job, _ in tasks)


def test_eval_trains_nothing_and_evaluates_what_is_there(scored: Path) -> None:
    root = scored.parent / "results"
    write_json(
        root / "behaviour.json", {"more=0/d1": {"end": "error"}, "default/d1": {"kind": "evaluate", "end": "error"}}
    )
    run(Options(scored, root, executor="debug", perform=STUB), Silent())
    (root / "behaviour.json").unlink()
    done = run(Options(scored, root, executor="debug", perform=STUB, train=False), Silent())
    assert (done.trained_tokens, done.evaluated, done.ended.exit_code) == (0, 1, 0)
    assert {item.run: item.end for item in done.ended.runs}["more=0/d1"] == "untrained"
