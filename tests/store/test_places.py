"""`~` in paths that people write, and files that a folder remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store.places import expanded, from_folder, remembered
from harness.study.errors import UserError


def test_a_home_folder_is_put_in_its_place_and_a_user_who_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded("~/data/*.jsonl") == Path("/home/ada/data/*.jsonl")
    assert expanded("data/~x") == Path("data/~x")
    with pytest.raises(UserError, match=r"`~nobody-at-all/x`: there is no user `nobody-at-all` here"):
        expanded("~nobody-at-all/x")


def test_a_folder_that_is_reached_through_a_link_is_asked_for_its_study_by_either_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`results` on a scratch disk: its jobs know it by its real name, people by the link."""
    (tmp_path / "home").mkdir()
    (tmp_path / "disk" / "scratch" / "deep" / "tiny").mkdir(parents=True)
    (tmp_path / "home" / "results").symlink_to(tmp_path / "disk" / "scratch" / "deep")
    (tmp_path / "home" / "tiny.yaml").write_text("")
    monkeypatch.chdir(tmp_path / "home")
    link, real = Path("results/tiny"), tmp_path / "disk" / "scratch" / "deep" / "tiny"
    kept = from_folder(link, Path("tiny.yaml"))
    assert kept == from_folder(real, tmp_path / "home" / "tiny.yaml")
    assert remembered(real, kept).samefile("tiny.yaml")
    assert remembered(link, kept).samefile("tiny.yaml")
    assert remembered(link, "../../tiny.yaml") == Path("tiny.yaml"), "as folders of before remember it"
