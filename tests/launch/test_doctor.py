"""What `ablate doctor` finds, how it says it, and what a study makes required."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import cli, track
from harness.launch import doctor, look
from harness.launch.doctor import Check
from harness.launch.progress import Silent
from harness.launch.run import Options, run
from tests.launch.conftest import SCORED, TINY


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub does not answer and its cache is empty."""
    monkeypatch.setattr(look, "_answers", lambda address: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def found(study: Path | None = None, folder: Path | None = None) -> dict[str, Check]:
    return {check.name: check for check in doctor.checks(study, folder)}


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else real(name, *rest))


def write(tmp_path: Path, old: str = "", new: str = "") -> Path:
    path = tmp_path / "tiny.yaml"
    text = TINY + SCORED
    assert old in text
    path.write_text(text.replace(old, new) if old else text)
    return path


def test_without_a_study_only_the_software_is_required(tmp_path: Path) -> None:
    checks = found(None, tmp_path / "results")
    assert doctor.passed(list(checks.values()))
    assert checks["hub"].mark == "optional" and "HF_HOME" in checks["hub"].get
    assert str(tmp_path) in checks["results"].found and "free" in checks["results"].found
    assert not (tmp_path / "results").exists()


def test_every_line_fits_80_columns_and_what_is_missing_comes_with_how_to_get_it() -> None:
    long = "a sentence of many words that is far longer than one line of a terminal can ever be, so it goes on below"
    lines = doctor.text([Check("a", "hub", "missing", long, f"`{long}`"), Check("b", "cores", "ok", "2")]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "a" and lines[1].startswith("  missing   hub") and any("-> `a sentence" in x for x in lines)
    assert lines[-1] == "Missing: hub." and "\x1b" not in "".join(lines)
    for check in found().values():
        assert check.mark == "ok" or check.get, check


def test_a_study_requires_the_extras_of_its_suites_and_another_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "math_verify")
    plain = write(tmp_path)
    assert cli.call(["doctor", str(plain), "-o", str(tmp_path / "results")]) == 0
    assert re.search(r"optional +math_verify", capsys.readouterr().out)
    asking = write(tmp_path, "eval: {", 'eval: {suites: ["math@1"], ')
    assert cli.call(["doctor", str(asking), "-o", str(tmp_path / "results"), "--json"]) == 1
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    extra = next(check for check in said["checks"] if check["name"] == "math_verify")
    assert (extra["mark"], extra["get"], said["ok"]) == ("missing", '`pip install "lm-eval[math]"`', False)


def test_gpus_that_are_not_here_are_missing_only_where_the_study_asks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert found(write(tmp_path))["device"].mark == "ok"
    asked = found(write(tmp_path, "launch: {jobs: 2}", "launch: {jobs: 2, device: cuda}"))["device"]
    assert asked.mark == "missing" and "1 GPU" in asked.found
    assert found(write(tmp_path, "launch: {jobs: 2}", "launch: {gpus: 8}"))["device"].mark == "missing"


def test_liger_is_required_where_the_study_asks_for_its_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "liger_kernel")
    assert "liger" not in found(write(tmp_path))
    asked = found(write(tmp_path, "launch: {jobs: 2}", "launch: {kernels: liger}"))["liger"]
    assert asked.mark == "missing" and "[liger]" in asked.get


def test_a_base_on_the_hub_needs_the_hub_unless_it_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TINY[TINY.index("  model:") : TINY.index("sources:\n")]
    study = write(tmp_path, config, "  model: owner/model\n")
    hub = found(study)["hub"]
    assert hub.mark == "missing" and "owner/model not in the cache" in hub.found
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in found(study)["hub"].found
    cached = tmp_path / "hub" / "models--owner--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    assert found(study)["hub"].mark == "missing"  # a snapshot that holds nothing
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    assert found(study)["hub"].mark == "ok"


def test_a_disk_without_room_for_the_checkpoints_of_the_plan_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write(tmp_path)
    options = Options(study, tmp_path / "results", executor="debug", perform="stub_work:perform")
    folder = run(options, Silent()).folder  # the model is known from here on
    assert "take about" not in found(study, folder.root)["results"].found  # nothing is left to be made
    shutil.rmtree(folder.states)
    assert "checkpoints to be made take about" in found(study, folder.root)["results"].found
    monkeypatch.setattr(look, "LOW_DISK_BYTES", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert found(study, folder.root)["results"].mark == "missing"


def test_a_place_that_is_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    assert found(write(tmp_path), tmp_path / "results")["results"].mark == "missing"


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(track, "installed", lambda name: True)
    monkeypatch.setattr(track, "version", lambda name: "1.0")
    said = look.tracker("wandb")
    assert said.ok and said.sentence == "1.0, logged in"
    assert "secret-of-mine" not in doctor.text(doctor.checks())


def test_a_tracker_is_missing_only_for_a_study_that_has_it_and_a_login_only_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(track, "installed", lambda name: name == "wandb")
    monkeypatch.setattr(track, "version", lambda name: "1.0")
    plain = found(write(tmp_path))
    assert {plain[name].mark for name in track.TRACKERS} == {"optional"}
    online = found(write(tmp_path, "launch: {jobs: 2}", "track: {wandb: {}, trackio: {}}"))
    assert (online["wandb"].mark, online["trackio"].mark, online["tensorboard"].mark) == (
        "missing",
        "missing",
        "optional",
    )
    assert "wandb login" in online["wandb"].get and "pip install trackio" in online["trackio"].get
    assert found(write(tmp_path, "launch: {jobs: 2}", "track: {wandb: {mode: offline}}"))["wandb"].mark == "ok"


def test_a_study_with_a_mistake_is_refused_as_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["doctor", str(write(tmp_path, "study: tiny", "studdy: tiny"))]) == 2
    assert "tiny.yaml:2:1" in capsys.readouterr().err
