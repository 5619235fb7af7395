"""A file that a newer version wrote is refused in one sentence; nothing is rewritten, made anew or removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import cli
from tests.proofs.ablate import plan_of
from tests.proofs.small import Finished

FORMATS: dict[str, tuple[str, list[str]]] = {
    "plan": ("out/plan.json", ["run", "plan", "status", "report", "verify"]),
    "state": ("out/states/*/DONE.json", ["run", "plan", "status", "verify"]),
    "segment": ("out/states/*/segment.json", ["verify run"]),
    "checkpoint": ("out/states/*/checkpoints/*/DONE.json", ["run", "plan", "verify"]),
    "evaluation": ("out/evals/*/*/DONE.json", ["run", "plan", "report", "verify"]),
    "run record": ("out/runs/*/*/run.json", ["run"]),
    "base manifest": ("out/manifests/base.json", ["run", "plan"]),
    "source manifest": ("out/manifests/sources/*.json", ["run", "plan"]),
    "attempt": ("out/states/*/attempts/*/env.json", ["run", "plan", "report"]),
    "end of an attempt": ("out/states/*/attempts/*/exit.json", ["logs"]),
    "checksums": ("out/.checksums.json", ["run", "plan"]),
    "mark of the report": ("out/.report.json", ["run"]),
    "token store": ("cache/tokens/*/meta.json", ["run"]),
}


def contents(root: Path, but: str) -> dict[str, bytes]:
    """Every file; without the cache of checksums, unless that is what is asked about."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != ".checksums.json" or but == "checksums"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_newer_schema_is_refused_and_left_alone(
    name: str, finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, verbs = FORMATS[name]
    monkeypatch.setenv("ABLATE_CACHE", str(finished.root / "cache"))
    path = sorted(finished.root.glob(pattern))[-1]
    plain = path.read_bytes()
    value = json.loads(plain)
    key = "version" if name == "token store" else "schema"
    assert value[key] == 1
    path.write_text(json.dumps({**value, key: 7, "what a newer version knows": True}))
    before = contents(finished.root, name)
    try:
        for verb in verbs:
            capsys.readouterr()
            assert cli.call(call(verb, finished.root, path)) == 2, verb
            said = capsys.readouterr().err
            reads = 2 if name == "checkpoint" else 1  # of a sharded one; this version reads both
            assert f"{path} was written by a newer version of ablate (schema 7, this one reads {reads}): update" in said
            assert len(said.splitlines()) == 1
            assert contents(finished.root, name) == before, verb
    finally:
        path.write_bytes(plain)


def call(verb: str, root: Path, path: Path) -> list[str]:
    """The words of a call. The run is one whose path goes through the file."""
    folder = str(root / "out")
    through = [run["name"] for run in plan_of(root / "out")["runs"] if set(path.parts) & {run["base"], *run["path"]}]
    if verb in ("run", "plan"):
        return [verb, str(root / "small.yaml"), "-o", folder, *(["--executor", "debug"] if verb == "run" else [])]
    return {"logs": ["logs", folder, *through[:1]], "verify run": ["verify", folder, *through[:1]]}.get(
        verb, [verb, folder]
    )


def test_nothing_was_changed_by_all_that(finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "out", tmp_path / "out")
    monkeypatch.setenv("ABLATE_CACHE", str(finished.root / "cache"))
    assert cli.call(["verify", str(tmp_path / "out")]) == 0
