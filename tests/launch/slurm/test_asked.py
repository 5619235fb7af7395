"""What people ask of a study's jobs, as it is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.launch.slurm import asked, breaker
from harness.store.layout import Folder


def folder(tmp_path: Path, submissions: int = 0) -> Folder:
    found = Folder(tmp_path)
    for number in range(submissions):
        found.submission(number).root.mkdir(parents=True)
    return found


def test_a_cancel_lasts_until_a_retry_of_the_same_items(tmp_path: Path) -> None:
    there = folder(tmp_path)
    asked.write(there, "cancel", ["train:a", "train:b"])
    assert asked.cancelled(there) == {"train:a", "train:b"}
    asked.write(there, "retry", ["train:a"])
    assert asked.cancelled(there) == {"train:b"}
    asked.write(there, "cancel", ["train:a"])
    assert asked.cancelled(there) == {"train:a", "train:b"}


def test_a_retry_forgets_the_submissions_before_it(tmp_path: Path) -> None:
    there = folder(tmp_path, 3)
    asked.write(there, "retry", ["train:a"])
    assert asked.forgotten(there) == {"train:a": 3} and asked.over_budget(there) == {}
    asked.write(there, "budget", ["train:a"])
    assert asked.over_budget(there) == {"train:a": 3} and asked.cancelled(there) == set()


def test_what_was_asked_of_a_folder_of_before_still_holds(tmp_path: Path) -> None:
    there = folder(tmp_path)
    old = {"time": 1, "what": "cancel", "before": 0, "items": ["train:a", "train:b"]}
    there.submissions.mkdir()
    (there.submissions / "asked.jsonl").write_text(f'{json.dumps(old)}\n{{"time": 1, "what": "cancel", "ite')
    assert asked.cancelled(there) == {"train:a", "train:b"}
    asked.write(there, "retry", ["train:a"])
    assert asked.cancelled(there) == {"train:b"}


def test_of_two_who_ask_at_once_both_are_heard_and_later_ones_come_after_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = folder(tmp_path)
    asked.write(there, "cancel", ["train:a"])
    with monkeypatch.context() as patch:
        patch.setattr(asked, "_files", lambda folder: [])  # neither has seen the other
        asked.write(there, "cancel", ["train:b"])
        asked.write(there, "retry", ["train:a"])
    assert asked.cancelled(there) == {"train:b"}
    for _ in range(10):
        asked.write(there, "retry", ["train:a", "train:b"])
        asked.write(there, "cancel", ["train:a"])
    assert asked.cancelled(there) == {"train:a"}


def test_a_group_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    there = folder(tmp_path)
    there.submissions.mkdir()
    assert breaker.reason(there, "g") is None
    breaker.hold(there, "g", "3 runs failed alike")
    assert breaker.reason(there, "g") == "3 runs failed alike" and breaker.reason(there, "h") is None
    assert breaker.let_go(there) == 1 and breaker.reason(there, "g") is None
