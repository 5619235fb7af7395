"""Writes that fail leave the old file and say why; modes are those of any new file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.launch import failures
from harness.store import atomic
from harness.store.atomic import WriteFailed, append_json_line, publish, read_json, staging_folder, write_json


def fail_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "before_write", fault)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, "disk", "no space is left on the disk: "),
        (errno.EDQUOT, "disk", "your disk quota is used up: "),
        (errno.EROFS, "forbidden", "mounted read-only"),
        (errno.EACCES, "forbidden", "may not be written to by "),
    ],
)
def test_a_write_that_the_system_refuses_is_one_paragraph(
    number: int, kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    fail_with(number, monkeypatch)
    with pytest.raises(WriteFailed) as failed:
        write_json(path, 2)
    assert words in str(failed.value) and str(path) in str(failed.value) and "\n" not in str(failed.value)
    assert failures.of_exception(failed.value).kind == failed.value.kind == kind
    assert read_json(path) == 1 and [found.name for found in tmp_path.iterdir()] == ["value.json"]


def test_free_and_needed_space_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(errno.ENOSPC, monkeypatch)
    status = os.statvfs(tmp_path)
    with (
        pytest.raises(WriteFailed, match=r" are free there, 12\.3 MB are needed\.") as failed,
        atomic.writing(tmp_path / "not" / "there", 12_300_000),
    ):
        pass
    assert atomic.readable_bytes(status.f_blocks * status.f_frsize) in str(failed.value)


def test_a_full_disk_is_known_in_whatever_way_a_library_says_it(tmp_path: Path) -> None:
    class SafetensorError(Exception): ...

    said = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(WriteFailed, match="no space is left"), atomic.writing(tmp_path / "x"):
        raise said
    with pytest.raises(ValueError), atomic.writing(tmp_path / "x"):
        raise ValueError("a defect is not a full disk")


def test_the_outermost_write_is_named_and_not_a_part_of_it(tmp_path: Path) -> None:
    staged = staging_folder(tmp_path / "1024")
    with pytest.raises(WriteFailed) as failed, atomic.writing(tmp_path / "1024", 5), atomic.writing(staged / "x", 4):
        raise OSError(errno.ENOSPC, "full")
    assert str(failed.value).startswith(f"{tmp_path / '1024'} cannot") and "5 B are needed" in str(failed.value)


def test_a_half_line_is_closed_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_json_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2, "torn by a full di')
    append_json_line(path, {"n": 3})
    append_json_line(path, {"n": 4})
    assert [line["n"] for line in atomic.read_json_lines(path)] == [1, 3, 4]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_private_files_of_libraries_become_like_any_other(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        staged = staging_folder(tmp_path / "final")
        (staged / "model").mkdir()
        for name in ("a", "model/b"):
            os.close(os.open(staged / name, os.O_CREAT | os.O_WRONLY, 0o600))
        publish(staged, tmp_path / "final")
    finally:
        os.umask(before)
    for name in ("a", "model/b"):
        assert (tmp_path / "final" / name).stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "final").stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_is_whole_is_not_replaced_and_what_is_not_is(tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        staged = staging_folder(tmp_path / "final")
        (staged / "value").write_text(number)
        publish(staged, tmp_path / "final", whole=lambda there: (there / "value").read_text() == "2")
    assert (tmp_path / "final" / "value").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
