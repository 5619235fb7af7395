"""`ablate run` from the study to the report, with a stub in the place of training and evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.launch import code, local, outcome, prepare, run
from harness.launch.lock import locked
from harness.launch.progress import Silent
from harness.launch.run import Options, Report
from harness.launch.status import status
from harness.store import attempts
from harness.store.atomic import read_json, read_json_lines, write_json
from harness.store.layout import Folder
from harness.study.errors import UserError

STUB = "stub_work:perform"


class Notes(Silent):
    """Keeps what a person would be told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def options(study: Path, **changes: Any) -> Options:
    plain = Options(study, study.parent / "results", executor="debug", perform=STUB)
    return replace(plain, **changes)


def bring(asked: Options) -> tuple[Report, list[str]]:
    notes = Notes()
    return run.run(asked, notes), notes.notes


def starts(folder: Folder) -> list[str]:
    return [line["id"] for line in read_json_lines(folder.root / "log.jsonl") if line["what"] == "start"]


def path_of(folder: Folder, name: str) -> list[str]:
    arm, seeds = name.split("/")
    found: list[str] = read_json(folder.run_json(arm, seeds))["path"]
    return found


def test_every_run_is_trained_evaluated_and_reported_and_a_second_run_does_nothing(scored: Path) -> None:
    first, _ = bring(options(scored))
    assert first.ended.exit_code == 0
    assert {item.end for item in first.ended.runs} == {"done"}
    assert first.trained_tokens == 2 * 12800 + 6 * 6400  # two trunks, three decays on each
    assert first.evaluated == 8
    assert first.report is not None and first.report.exists()
    done = starts(first.folder)
    assert len(done) == len(set(done)) == 1 + 8 + 8

    second, notes = bring(options(scored))
    assert starts(second.folder) == done
    assert (second.trained_tokens, second.evaluated, second.ended.exit_code) == (0, 0, 0)
    assert notes == []


def test_a_second_run_imports_no_torch(scored: Path) -> None:
    code.tree_hash.cache_clear()  # another version of the code builds the report anew
    bring(options(scored))
    script = (
        "import sys; from test_run import *\n"
        f"report, notes = bring(options(Path({str(scored)!r})))\n"
        "assert report.trained_tokens == 0 and report.ended.exit_code == 0\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'matplotlib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_flipped_byte_in_a_finished_checkpoint_is_named_and_made_good(scored: Path) -> None:
    first, _ = bring(options(scored))
    leaf = path_of(first.folder, "more=0.3/d1")[-1]
    weights = first.folder.state(leaf).checkpoint(1) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[5] ^= 1
    weights.write_bytes(content)
    before = starts(first.folder)
    second, notes = bring(options(scored))
    assert any(str(weights) in note and "altered" in note for note in notes)
    again = starts(second.folder)[len(before) :]
    assert again == [f"train:{leaf}", f"evaluate:{leaf}"]  # the evaluation finds its results there, and is done
    assert second.ended.exit_code == 0


def test_an_emptied_evaluation_marker_is_named_and_only_that_state_is_evaluated(scored: Path) -> None:
    first, _ = bring(options(scored))
    marker = next(first.folder.evals.glob("*/*/DONE.json"))
    marker.write_bytes(b"")
    before = starts(first.folder)
    second, notes = bring(options(scored))
    assert any(str(marker) in note for note in notes)
    again = starts(second.folder)[len(before) :]
    assert len(again) == 1 and again[0].startswith("evaluate:")


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_failed_runs_are_listed_others_finish_and_the_next_run_tries_them_again(
    scored: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = "error" if executor == "debug" else "die"
    root = scored.parent / "results"
    asked = options(scored, executor=executor)
    write_json(root / "behaviour.json", {"more=0/d1": {"end": end, "once": True}})
    monkeypatch.setattr(local, "RETRIES", 0)
    first, _ = bring(asked)
    assert first.ended.exit_code == 1
    failed = first.ended.failed
    assert [item.run for item in failed] == ["more=0/d1"]
    assert sum(item.end == "done" for item in first.ended.runs) == 5
    table = outcome.failure_table(failed, str(root), asked.command())
    assert "more=0/d1" in table and f"ablate logs {root} more=0/d1" in table and "ablate run" in table
    assert {item.name: item.state for item in status(first.folder)}["more=0/d1"] == "failed"

    second, _ = bring(asked)
    assert second.ended.exit_code == 0
    assert second.trained_tokens == 6400
    leaf = first.folder.state(path_of(first.folder, "more=0/d1")[-1])
    assert leaf.attempt_numbers() == [0, 1]
    ended = attempts.read_exit(leaf, 0)
    assert ended is not None and ended["failure"] == ("error" if end == "error" else "killed")


def test_a_diverged_run_is_a_result_and_is_not_tried_again(scored: Path) -> None:
    root = scored.parent / "results"
    write_json(root / "behaviour.json", {"more=0.3/d2": {"end": "diverged"}})
    first, _ = bring(options(scored))
    assert first.ended.exit_code == 0
    assert {item.run: item.end for item in first.ended.runs}["more=0.3/d2"] == "diverged"
    assert {item.name: item.state for item in status(first.folder)}["more=0.3/d2"] == "diverged"
    before = starts(first.folder)
    second, _ = bring(options(scored))
    assert second.ended.exit_code == 0 and starts(second.folder) == before


def test_a_failed_evaluation_fails_its_run_and_keeps_what_was_trained(scored: Path) -> None:
    root = scored.parent / "results"
    write_json(root / "behaviour.json", {"more=0.3/d2": {"kind": "evaluate", "end": "error"}})
    first, _ = bring(options(scored))
    assert first.ended.exit_code == 1
    assert [(item.run, item.failure and item.failure.error) for item in first.ended.failed] == [
        ("more=0.3/d2", "ValueError: this cannot be scored")
    ]
    assert {item.name: item.state for item in status(first.folder)}["more=0.3/d2"] == "unevaluated"
    with locked(first.folder):
        assert {item.name: item.state for item in status(first.folder)}["more=0.3/d2"] == "evaluating"


def test_a_suite_that_was_added_by_eval_is_named_when_the_study_leaves_it_out(scored: Path) -> None:
    asked = options(scored)
    bring(asked)
    added = replace(asked, overrides=("eval.suites=[quickstart@1]",), suites=("quickstart@1",), train=False)
    _, said = bring(added)
    assert not any("was added by" in line for line in said)
    _, said = bring(asked)
    assert "quickstart@1 was added by `ablate eval`; write it into eval.suites to keep it in the report" in said
    _, said = bring(asked)
    assert not any("was added by" in line for line in said), "said once"


def test_without_sharing_every_run_has_segments_of_its_own(unscored: Path) -> None:
    unshared, _ = bring(options(unscored, share=False))
    assert unshared.trained_tokens == 6 * (12800 + 6400)
    with pytest.raises(UserError, match="made with `--no-share`"):
        bring(options(unscored))
    again, _ = bring(options(unscored, share=False))
    assert again.trained_tokens == 0


def test_no_share_needs_an_empty_folder(unscored: Path) -> None:
    bring(options(unscored))
    with pytest.raises(UserError, match="needs an empty folder"):
        bring(options(unscored, share=False))


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(unscored: Path) -> None:
    asked = options(unscored, overrides=("stages.decay.lr={shape: constant}",))
    with pytest.raises(UserError, match="schedule-open"):
        bring(asked)
    assert not (unscored.parent / "results" / "states").exists()


def test_a_study_over_its_budget_is_refused_unless_told_to_go_on(unscored: Path) -> None:
    asked = options(unscored, overrides=("budget.gpu_hours=1.0e-12",))
    with pytest.raises(UserError, match="GPU-hours"):
        bring(asked)
    allowed, _ = bring(replace(asked, yes=True))
    assert allowed.ended.exit_code == 0


def test_two_runs_in_one_folder_at_a_time_are_refused(unscored: Path) -> None:
    folder = Folder(unscored.parent / "results")
    with locked(folder), pytest.raises(UserError, match=f"process {os.getpid()}"):
        bring(options(unscored))


def test_an_interrupted_run_leaves_with_130_and_says_how_to_go_on(unscored: Path) -> None:
    root = unscored.parent / "results"
    write_json(root / "behaviour.json", {"more=0/d1": {"steps": 1000, "pause": 0.02}})
    prepare.resolved_plan(prepare.load(unscored), Folder(root), True, print)  # so that the process below need not
    script = (
        "import sys; from harness import verbs; from test_run import *\n"
        f"asked = Options(Path({str(unscored)!r}), Path({str(root)!r}), jobs=1, perform=STUB)\n"
        "sys.exit(verbs.reconcile(asked, False))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (root / "log.jsonl").exists() or "train:" + long_state(root) not in starts(Folder(root)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(said.strip().splitlines()) == 1
    assert "stopped by SIGINT" in said and f"ablate run {unscored} -o {root} --jobs 1" in said
    assert {item.name: item.state for item in status(Folder(root))}["more=0/d1"] == "stopped"


def long_state(root: Path) -> str:
    try:
        return path_of(Folder(root), "more=0/d1")[-1]
    except (OSError, json.JSONDecodeError):
        return "not planned yet"


def test_a_folder_that_is_moved_while_it_is_worked_in_is_said_to_be_and_goes_on_where_it_is(unscored: Path) -> None:
    """A report of what nobody finds there any more would look as if the results were lost."""
    here, there = unscored.parent / "results", unscored.parent / "elsewhere"

    class Mover(Silent):
        def settled(self, item: Any, result: Any) -> None:
            if here.exists() and not there.exists() and item.kind == "train":
                here.rename(there)

    with pytest.raises(UserError, match="results was moved or removed while it was worked in"):
        run.run(options(unscored), Mover())
    assert not (here / "report").exists()
    report, _ = bring(options(unscored, folder=there))
    assert {item.end for item in report.ended.runs} == {"done"}
    assert len(starts(Folder(there))) == len(set(starts(Folder(there)))), "nothing that was there is done again"
