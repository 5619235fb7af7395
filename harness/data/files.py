"""Documents from the user's files: text, JSON lines (plain or zstandard) and parquet.

Bytes are kept as they are (no newline translation), since bits per byte count them. A mistake in a file is a
`UserError` that names the file and the line or row.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.store.places import expanded
from harness.study.errors import UserError, nearest

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".parquet")
DEFAULT_FIELD = "text"
_CHUNK = 1 << 16  # compressed bytes read at once


def matching_files(patterns: Sequence[str], folder: Path, source: str) -> list[Path]:
    """The files that the patterns name, each once, in the order of their paths.

    patterns: globs (`**` reaches into subfolders), relative to `folder` unless absolute. UserError for a pattern that
    matches no file and for a file that is not one of `SUFFIXES`.
    """
    found: set[Path] = set()
    for pattern in patterns:
        absolute = str(folder / expanded(pattern))
        # Path.glob takes no absolute patterns, which users write.
        matches = [Path(match) for match in glob.glob(absolute, recursive=True) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise UserError(f"source `{source}`: no file matches `{pattern}` (looked for {absolute})")
        found.update(matches)
    for path in sorted(found):
        _suffix(path, source)
    return sorted(found)


def read_files(paths: Iterable[Path], field: str | None, source: str) -> Iterator[str]:
    """The documents of the files, in order.

    A .txt file is one document. A line of .jsonl (or .jsonl.zst) and a row of .parquet are one each: the string under
    `field` (None: `text`). UserError where a file cannot be read that way.
    """
    for path in paths:
        suffix = _suffix(path, source)
        try:
            if suffix == ".txt":
                yield _decode(path.read_bytes(), path, 1, source)
            elif suffix == ".parquet":
                yield from _read_parquet(path, field or DEFAULT_FIELD, source)
            else:
                yield from _read_json_lines(path, field or DEFAULT_FIELD, source)
        except OSError as reason:
            raise UserError(f"source `{source}`: {path} cannot be read: {reason}") from reason


def takes_field(paths: Iterable[Path]) -> bool:
    """Whether any of the files has fields, so that `text` means something."""
    return any(path.suffix != ".txt" for path in paths)


def _suffix(path: Path, source: str) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise UserError(f"source `{source}`: {path} is none of {', '.join(SUFFIXES)}")


def _read_json_lines(path: Path, field: str, source: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, source), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(_decode(line, path, number, source))
        except ValueError as reason:
            raise UserError(f"source `{source}`: {place}: not a line of JSON: {reason}") from reason
        if not isinstance(record, dict):
            raise UserError(f"source `{source}`: {place}: expected a JSON object, got {type(record).__name__}")
        if field not in record:
            raise UserError(f"source `{source}`: {place}: there is no field `{field}`; {nearest(field, record)}")
        yield _text(record[field], field, place, source)


def _lines(path: Path, source: str) -> Iterator[bytes]:
    if path.suffix != ".zst":
        with path.open("rb") as file:
            yield from file
        return
    left = b""
    for data in _decompressed(path, source):
        *whole, left = (left + data).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if left:
        yield left


def _decompressed(path: Path, source: str) -> Iterator[bytes]:
    """What a zstandard file holds, frame after frame. A file that was cut off is an error: a stream reader would end
    there as if it were whole, and documents would be missing."""
    import zstandard

    frame = None
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(data)
                except zstandard.ZstdError as reason:
                    raise UserError(f"source `{source}`: {path} is not zstandard data: {reason}") from reason
                data = frame.unused_data
                frame = None if frame.eof else frame
    if frame is not None or not path.stat().st_size:
        raise UserError(f"source `{source}`: {path} ends in the middle of its zstandard data; fetch or write it again")


def _read_parquet(path: Path, field: str, source: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise UserError(f"source `{source}`: {path} has no column `{field}`; {nearest(field, names)}")
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, field, f"{path} row {row}", source)
    except pyarrow.ArrowException as reason:
        raise UserError(f"source `{source}`: {path} cannot be read as parquet: {reason}") from reason


def _decode(data: bytes, path: Path, first_line: int, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as reason:
        line = first_line + data.count(b"\n", 0, reason.start)
        raise UserError(f"source `{source}`: {path}:{line}: not UTF-8: {reason}") from reason


def _text(value: Any, field: str, place: str, source: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"source `{source}`: {place}: `{field}` should be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as reason:
        raise UserError(f"source `{source}`: {place}: `{field}` is not valid Unicode: {reason}") from reason
    return value
