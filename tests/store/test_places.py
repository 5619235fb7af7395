"""`~` in paths that people write."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store.places import expanded
from harness.study.errors import UserError


def test_a_home_folder_is_put_in_its_place_and_a_user_who_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert expanded("~/data/*.jsonl") == Path("/home/ada/data/*.jsonl")
    assert expanded("data/~x") == Path("data/~x")
    with pytest.raises(UserError, match=r"`~nobody-at-all/x`: there is no user `nobody-at-all` here"):
        expanded("~nobody-at-all/x")
