"""An outage, a wrong key, a tracker that hangs: the study is trained all the same, and `ablate sync` sends it later."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli
from harness.launch import tracking
from harness.store.layout import Folder
from harness.store.tracking import Standing, read_standings
from harness.track.settings import Target
from tests.proofs.ablate import command, final_weights
from tests.track.conftest import STUDY, UPDATES
from tests.track.readers import wandb_offline
from tests.track.wandb_server import KEY, WandbServer

SHORT = ["--executor", "debug"]


@pytest.fixture
def tracked(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study with W&B, nothing trained yet."""
    monkeypatch.setenv("ABLATE_CACHE", str(trained / "cache"))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + "track: wandb\n")
    return path


def ran(study: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the study to its end; what was said. The weights are those of a run without a tracker."""
    out = study.parent / "out"
    assert cli.call(["run", str(study), "-o", str(out), *SHORT]) == 0
    assert final_weights(out) == final_weights(trained / "out")
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


def test_live_every_run_is_there_when_the_command_ends(
    tracked: Path, trained: Path, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(tracked, trained, capsys)
    assert sorted(len(run.rows) for run in server.runs.values()) == [10, UPDATES + 2, UPDATES + 2]
    for run in server.runs.values():
        assert run.complete and run.opened == 1
        steps = [row["_step"] for row in run.rows]
        assert steps == sorted(set(steps))
    assert read_standings(Folder(tracked.parent / "out")) == [Standing("wandb", 3, 3)]


@pytest.mark.parametrize(
    ("key", "why"),
    [("short", "API key must have 40+ characters"), ("b" * 40, "wandb"), ("", "not logged in")],
    ids=["malformed", "refused", "none"],
)
def test_a_wrong_key_costs_the_dashboard_and_nothing_else(
    key: str,
    why: str,
    tracked: Path,
    trained: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.refuses = True
    monkeypatch.setenv("WANDB_API_KEY", key)
    said = ran(tracked, trained, capsys)
    assert why in said and "0 of 3 runs sent" in said and "`ablate sync" in said
    assert not key or key not in said.replace(why, "")
    assert not any(key in path.read_text(errors="replace") for path in tracked.parent.rglob("*.txt") if len(key) > 9)

    server.refuses = False
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert cli.call(["sync", str(tracked.parent / "out")]) == 0
    assert capsys.readouterr().out == "wandb: 3 of 3 runs sent\n"
    assert all(run.complete for run in server.runs.values()) and len(server.runs) == 3


def test_a_server_that_never_answers_is_left_when_the_work_is_done(
    tracked: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        said = ran(tracked, trained, capsys)
    assert "0 of 3 runs sent; nothing was heard of it" in said


def test_whatever_a_tracker_raises_is_a_note(
    tracked: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Target("wandb", factory="tests.track.broken:BrokenTracker")
    monkeypatch.setattr(tracking, "targets_here", lambda study, note: [broken])
    said = ran(tracked, trained, capsys)
    assert "wandb: ZeroDivisionError: division by zero; the work goes on without it" in said


def test_sync_sends_an_offline_study_once_in_parallel(
    tracked: Path,
    trained: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ran(tracked, trained, capsys)
    out = tracked.parent / "out"
    assert sorted(wandb_offline(out))[:2] == ["default/d1", "more=0.3/d1"] and not server.runs
    assert cli.call(["sync", str(out), "--jobs", "3", "--json"]) == 0
    first = server.lines
    assert json.loads(capsys.readouterr().out) == {
        "trackers": [{"tracker": "wandb", "sent": 3, "of": 3, "problem": None}]
    }
    assert first == sum(len(run.rows) for run in server.runs.values()) == 2 * (UPDATES + 2) + 10
    assert cli.call(["sync", str(out)]) == 0
    assert server.lines == first, "nothing is sent twice"


def test_a_package_that_is_missing_is_said_before_anything_is_spent(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harness.track.settings.installed", lambda name: False)
    assert cli.call(["run", str(tracked), "-o", str(tracked.parent / "out"), *SHORT]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "`track: wandb` needs the package wandb" in said and "pip install wandb" in said
    assert not (tracked.parent / "out" / "states").exists()


def test_training_imports_no_tracker() -> None:
    script = (
        "import sys, harness.launch.worker, harness.launch.perform, harness.train.segment, harness.evals\n"
        "print([name for name in ('wandb', 'trackio', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_across_a_kill_each_history_is_whole_and_strictly_increasing(tmp_path: Path, trained: Path) -> None:
    text = STUDY.replace("2560", "25600").replace("checkpoint_every: 1024", "checkpoint_every: 5120")
    (tmp_path / "study.yaml").write_text(text + "track: {wandb: {mode: offline}, tensorboard: {}}\n")
    call = command("run", tmp_path / "study.yaml", "-o", tmp_path / "out")
    environment = {**os.environ, "ABLATE_CACHE": str(trained / "cache")}
    process = subprocess.Popen(call, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    states = tmp_path / "out" / "states"
    while not any(path.stat().st_size > 20_000 for path in states.glob("*/attempts/*/metrics.jsonl")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run(call, env=environment, capture_output=True, check=True).returncode == 0
    found = wandb_offline(tmp_path / "out")
    for name in ("default/d1", "more=0.3/d1"):
        tokens = [row["tokens"] for row in found[name] if "train/loss" in row]
        assert tokens == [256 * (n + 1) for n in range(200)]
