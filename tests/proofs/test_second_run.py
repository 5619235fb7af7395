"""The second run does nothing, unless something is damaged: then it says what, and makes it whole again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.proofs.ablate import ablate, final_weights, plan_of, updates, write_study

pytestmark = pytest.mark.slow


def copy(undisturbed: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "moved" / "elsewhere"  # a results folder may be moved
    shutil.copytree(undisturbed, folder)
    return folder


def test_the_second_run_trains_nothing(tmp_path: Path, cache: Path, undisturbed: Path) -> None:
    folder = copy(undisturbed, tmp_path)
    before = updates(folder)
    value = json.loads(ablate(cache, "run", write_study(tmp_path), "-o", folder, "--yes", "--json"))
    assert value["trained_tokens"] == 0
    assert updates(folder) == before


def test_one_altered_byte_of_a_finished_checkpoint_is_noticed_named_and_mended(
    tmp_path: Path, cache: Path, undisturbed: Path
) -> None:
    folder = copy(undisturbed, tmp_path)
    weights = final_weights(folder)
    leaf = plan_of(folder)["runs"][0]["path"][-1]
    model = next((folder / "states" / leaf / "checkpoints").glob("*/model/model.safetensors"))
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(bytes(data))
    printed = ablate(cache, "run", write_study(tmp_path), "-o", folder, "--yes")
    assert "damaged" in printed
    assert str(model) in printed
    assert final_weights(folder) == weights


def test_an_emptied_marker_is_noticed_named_and_mended(tmp_path: Path, cache: Path, undisturbed: Path) -> None:
    folder = copy(undisturbed, tmp_path)
    weights = final_weights(folder)
    leaf = plan_of(folder)["runs"][-1]["path"][-1]
    marker = folder / "states" / leaf / "DONE.json"
    marker.write_bytes(b"")
    printed = ablate(cache, "run", write_study(tmp_path), "-o", folder, "--yes")
    assert str(marker) in printed
    assert final_weights(folder) == weights


def test_verify_names_damage_and_a_run_trained_alone_has_the_same_weights(
    tmp_path: Path, cache: Path, undisturbed: Path
) -> None:
    folder = copy(undisturbed, tmp_path)
    ablate(cache, "verify", folder)
    assert "default/d1" in ablate(cache, "verify", folder, "default/d1")
    leaf = plan_of(folder)["runs"][0]["path"][-1]
    optimizer = next((folder / "states" / leaf / "checkpoints").glob("*/optimizer.safetensors"))
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert str(optimizer) in ablate(cache, "verify", folder, code=1)
