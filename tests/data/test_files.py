"""Sources from files, and what is said when a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from harness.data.sources import declared_source, declared_sources
from harness.study import load_study
from harness.study.errors import UserError
from tests.study.conftest import BASE, STAGES


def read(folder: Path, *patterns: str, text: str | None = None) -> list[str]:
    return list(declared_source("web", {"files": list(patterns), "text": text}, folder).documents())


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_every_format_gives_its_documents_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é one\r\nfile\n".encode())
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "line 1"}) + b"\n" + lines({"text": "line 2", "id": 3}))
    packed = zstandard.compress(lines({"text": "packed 1"})) + zstandard.compress(lines({"text": "packed 2"}))
    (tmp_path / "c.jsonl.zst").write_bytes(packed)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["row 1", "row 2"], "n": [1, 2]}), tmp_path / "d.parquet")
    assert read(tmp_path, "*") == [
        "é one\r\nfile\n",
        "line 1",
        "line 2",
        "packed 1",
        "packed 2",
        "row 1",
        "row 2",
    ]


@pytest.mark.parametrize("missing", [1, 5, 100])
def test_a_zstandard_file_that_was_cut_off_gives_no_fewer_documents_but_an_error(tmp_path: Path, missing: int) -> None:
    # Cut in the last frame's only block, nothing of which can be decoded: what remains ends with a whole line.
    frames = [zstandard.compress(lines(*({"text": f"document {i} {j}"} for j in range(50)))) for i in range(3)]
    assert len(frames[-1]) > missing
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames)[:-missing])
    with pytest.raises(UserError, match="ends in the middle of its zstandard data"):
        read(tmp_path, "a.jsonl.zst")


def test_documents_larger_than_a_read_and_lines_without_an_end_come_whole(tmp_path: Path) -> None:
    texts = ["x" * 300_000 + "\u2028\r é", "", "last"]
    packed = zstandard.compress(b"\r\n".join(json.dumps({"text": text}).encode() for text in texts))
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    assert read(tmp_path, "a.jsonl.zst") == texts


def test_globs_reach_subfolders_and_name_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.txt").write_text("x")
    (tmp_path / "deep" / "w.txt").write_text("w")
    assert sorted(read(tmp_path, "deep/er/x.txt", "deep/**/*.txt")) == ["w", "x"]
    assert read(tmp_path, str(tmp_path / "deep" / "*.txt")) == ["w"]


def test_text_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "wrong", "body": "right"}))
    assert read(tmp_path, "a.jsonl", text="body") == ["right"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines({"text": "x"}) + b"{oops\n", r"a\.jsonl:2: not a line of JSON"),
        ("a.jsonl", lines({"text": "x"}) + b'{"text": "\xff"}\n', r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", lines({"text": "x"}, {"txt": "y"}), r"a\.jsonl:2: there is no field `text`; did you mean `txt`"),
        ("a.jsonl", lines(["x"]), r"a\.jsonl:1: expected a JSON object, got list"),
        ("a.jsonl", lines({"text": 3}), r"a\.jsonl:1: `text` should be a string, got int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: `text` is not valid Unicode"),
        ("a.txt", b"fine\nbad \xff\n", r"a\.txt:2: not UTF-8"),
        ("a.csv", b"x", r"a\.csv is none of \.txt, \.jsonl"),
        ("a.jsonl.zst", b"not packed", r"a\.jsonl\.zst is not zstandard data"),
        ("a.jsonl.zst", b"", r"a\.jsonl\.zst ends in the middle of its zstandard data"),
        ("a.parquet", b"not parquet", r"a\.parquet cannot be read as parquet"),
        ("b.txt", b"x", r"no file matches `a\.\*`"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="source `web`: .*" + message):
        read(tmp_path, "a.*")


def test_a_parquet_column_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None], "n": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column `txt`; did you mean `text`"):
        read(tmp_path, "a.parquet", text="txt")
    with pytest.raises(UserError, match=r"row 2: `text` should be a string, got NoneType"):
        read(tmp_path, "a.parquet")


def test_a_field_named_for_text_files_is_refused_and_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="leave `text` out"):
        read(tmp_path, "a.txt", text="body")


def test_a_study_may_take_text_files_which_have_no_field(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document")
    study = BASE.replace("web: {builtin: python_docs}", "web: {files: ['*.txt']}") + STAGES
    (tmp_path / "study.yaml").write_text(study)
    assert list(declared_sources(load_study(tmp_path / "study.yaml"))["web"].documents()) == ["one document"]


def test_the_field_that_is_read_unless_another_is_written_names_the_same_pool(tmp_path: Path) -> None:
    one, other = (declared_source("web", {"files": ["*.jsonl"], **field}, tmp_path) for field in ({}, {"text": "text"}))
    assert one.pool == other.pool and one.whole_declaration == other.whole_declaration
