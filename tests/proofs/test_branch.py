"""A new arm that branches off where a checkpoint was kept trains its own tokens, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.store import attempts, states
from harness.store.layout import Folder
from tests.proofs.ablate import final_weights, plan_of, updates
from tests.proofs.small import write_small

BATCH, KEPT, DECAY = 256, 5120, 6400
EARLIER = "ablate:\n  - cases: {earlier: {stages.stable.tokens: 5120}}\n"


def study(folder: Path, earlier: bool = False) -> Path:
    """A trunk of 7,680 tokens, checkpoints kept at multiples of 2,560, and two decays; with `earlier` one more decay
    that branches off before."""
    path = write_small(folder, evaluated=False)
    text = path.read_text() + "keep: {checkpoints: every 2560}\n"
    if earlier:
        text = text.replace("ablate:\n", EARLIER)
        text = text.replace("{default: [no-control]}", "{default: [no-control], earlier: [unequal-tokens]}")
    path.write_text(text)
    return path


def run(path: Path, folder: Path) -> None:
    said = ["run", str(path), "-o", str(folder), "--executor", "debug", "--yes"]
    assert cli.call(said) == 0


def test_an_arm_that_branches_at_a_kept_checkpoint_trains_its_own_tokens_alone_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    run(study(tmp_path), folder)
    before = updates(folder)

    more = study(tmp_path, earlier=True)
    capsys.readouterr()
    assert cli.call(["plan", str(more), "-o", str(folder), "--json"]) == 0
    planned: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert planned["totals"]["tokens_to_train"] == DECAY
    (trunk,) = [segment for segment in planned["segments"] if segment["tokens_to"] == KEPT]
    assert trunk["reason"] == "taken from the checkpoint that was kept at token 5,120"

    run(more, folder)
    after = updates(folder)
    assert sum(after.values()) - sum(before.values()) == DECAY // BATCH
    assert after[trunk["id"]] == 0
    run(study(tmp_path / "fresh", earlier=True), tmp_path / "fresh" / "out")
    assert final_weights(folder) == final_weights(tmp_path / "fresh" / "out")
    assert cli.call(["verify", str(folder)]) == 0


def test_a_kill_between_the_last_checkpoint_and_the_marker_costs_no_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "out"
    run(study(tmp_path), folder)
    trained, weights = updates(folder), final_weights(folder)
    path = plan_of(folder)["runs"][0]["path"]
    trunk, end = (Folder(folder).state(path[index]) for index in (0, -1))
    assert states.read_done(trunk) is not None
    for state in (trunk, end):  # nothing is left that the end could be trained from
        for tokens in state.checkpoint_tokens():
            if tokens < 7680 + DECAY:
                shutil.rmtree(state.checkpoint(tokens))
    trunk.done.unlink()
    end.done.unlink()
    run(study(tmp_path), folder)
    assert updates(folder) == trained
    assert final_weights(folder) == weights
    assert [e["tokens"] for e in attempts.read_events(end) if e["kind"] == "attempt_started"][-1] == 7680 + DECAY
