"""What a results folder holds is looked at anew each time, and unchanged files are hashed once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.launch import checksums
from harness.launch.observe import observe
from harness.store import checkpoints, states
from harness.store.atomic import staging_folder
from harness.store.layout import Folder

STATE = "a" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A results folder with one trained state."""
    folder = Folder(tmp_path / "results")
    state = folder.state(STATE)
    staged = staging_folder(state.checkpoint(10))
    (staged / "model").mkdir()
    (staged / "model" / "model.safetensors").write_bytes(b"weights" * 1000)
    (staged / "cursor.json").write_bytes(b"{}")
    marker = checkpoints.seal(staged, state.checkpoint(10), STATE, 10, 1)
    states.write_done(state, "trained", 10, 1, checkpoints.weights_hash(marker.files), 10, {})
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    names: list[str] = []
    plain = checksums.hash_of

    def counted(path: Path) -> str:
        names.append(path.name)
        return plain(path)

    monkeypatch.setattr(checksums, "hash_of", counted)
    return names


def weights_of(folder: Folder) -> Path:
    return folder.state(STATE).checkpoint(10) / "model" / "model.safetensors"


def settled(folder: Folder) -> None:
    """Wait until file times are old enough to be told from a change that comes now."""
    newest = max(path.stat().st_ctime_ns for path in folder.root.rglob("*"))
    while time.time_ns() < newest + 2 * checksums.RESOLUTION_NS:
        time.sleep(0.01)


@pytest.mark.parametrize("file", checkpoints.TOKENIZER_FILES)
def test_every_file_that_decides_how_text_is_encoded_tells_tokenizers_apart(file: str, tmp_path: Path) -> None:
    seen = []
    for text in ("one", "two"):
        state = Folder(tmp_path / text).state(STATE)
        staged = staging_folder(state.checkpoint(10))
        (staged / "model").mkdir()
        (staged / "model" / file).write_text(text)
        marker = checkpoints.seal(staged, state.checkpoint(10), STATE, 10, 1)
        states.write_done(state, "trained", 10, 1, checkpoints.weights_hash(marker.files), 10, {})
        seen.append(observe(Folder(tmp_path / text)).observed.states[STATE].tokenizer)
    assert None not in seen and seen[0] != seen[1]


def test_a_second_look_hashes_nothing(folder: Folder, hashed: list[str]) -> None:
    settled(folder)
    assert observe(folder).observed.states[STATE].outcome == "trained"
    assert sorted(hashed) == ["cursor.json", "model.safetensors"]
    hashed.clear()
    assert observe(folder).observed.states[STATE].outcome == "trained"
    assert hashed == []


def test_one_flipped_byte_is_noticed_after_a_look_and_named(folder: Folder, hashed: list[str]) -> None:
    settled(folder)
    observe(folder)
    before = weights_of(folder).stat()
    with weights_of(folder).open("r+b") as file:
        file.seek(3000)
        byte = file.read(1)
        file.seek(3000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(weights_of(folder), ns=(before.st_atime_ns, before.st_mtime_ns))  # whoever hides a change sets this back
    seen = observe(folder)
    assert seen.observed.states[STATE].outcome == "damaged"
    assert any("model.safetensors was altered" in sentence for sentence in seen.damage)
    assert STATE not in seen.observed.checkpoints


def test_an_emptied_marker_is_noticed_and_named(folder: Folder) -> None:
    settled(folder)
    observe(folder)
    folder.state(STATE).done.write_bytes(b"")
    seen = observe(folder)
    assert seen.observed.states[STATE].outcome == "damaged"
    assert any(str(folder.state(STATE).done) in sentence for sentence in seen.damage)


def test_an_emptied_checkpoint_marker_is_noticed_and_named(folder: Folder) -> None:
    marker = folder.state(STATE).checkpoint(10) / "DONE.json"
    marker.write_bytes(b"")
    seen = observe(folder)
    assert seen.observed.states[STATE].outcome == "damaged"
    assert any(str(marker) in sentence for sentence in seen.damage)


def test_a_missing_file_is_named(folder: Folder) -> None:
    weights_of(folder).unlink()
    assert any("model.safetensors is missing" in sentence for sentence in observe(folder).damage)


def test_the_cache_can_be_deleted_or_torn(folder: Folder, hashed: list[str]) -> None:
    settled(folder)
    observe(folder)
    cache = folder.root / checksums.NAME
    for content in (None, b"", b"[]", b'{"schema": 1, "files": [1]}'):
        if content is None:
            cache.unlink()
        else:
            cache.write_bytes(content)
        hashed.clear()
        assert observe(folder).observed.states[STATE].outcome == "trained"
        assert sorted(hashed) == ["cursor.json", "model.safetensors"]


def test_a_file_hashed_while_it_may_still_change_is_hashed_again(folder: Folder, hashed: list[str]) -> None:
    weights_of(folder).touch()  # changed just now: another write in the same tick would look the same
    observe(folder)
    hashed.clear()
    settled(folder)
    observe(folder)
    assert "model.safetensors" in hashed


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    seen = observe(Folder(tmp_path / "nothing"))
    assert not seen.observed.states and not seen.damage
    assert not (tmp_path / "nothing").exists()
