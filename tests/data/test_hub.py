"""Data sets of the hub: the right files of a commit, fetched by the real client from a server on this machine."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from harness.data import hub
from harness.data.sources import Source
from harness.study.errors import UserError

COMMIT = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
        {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
        {
            "config_name": "both",
            "data_files": [{"split": "train", "path": ["a/**", "b.jsonl"]}, {"split": "test", "path": "t.txt"}],
        },
        {"config_name": "plain", "data_files": "a/*.parquet"},
        {"config_name": "folder", "data_dir": "a"},
    ]
}
NAMES = [
    "README.md",
    "data/x/0.parquet",
    "sample/10BT/000.parquet",
    "sample/100BT/000.parquet",
    "a/0.parquet",
    "a/c/1.jsonl",
]
NAMES += ["b.jsonl", "t.txt", "a/notes.pdf"]


def chosen(card: dict[str, Any], name: str | None = None, split: str = "train", names: list[str] = NAMES) -> list[str]:
    return hub.choose(names, card, {"hf": "someone/texts", "name": name, "split": split}, "web")


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        (None, "train", ["data/x/0.parquet"]),
        ("sample-10BT", "train", ["sample/10BT/000.parquet"]),
        ("both", "train", ["a/0.parquet", "a/c/1.jsonl", "b.jsonl"]),
        ("both", "test", ["t.txt"]),
        ("plain", "train", ["a/0.parquet"]),
        ("folder", "train", ["a/0.parquet", "a/c/1.jsonl"]),
    ],
)
def test_the_card_says_which_files_a_configuration_has(name: str | None, split: str, expected: list[str]) -> None:
    assert chosen(CARD, name, split) == expected


def test_without_a_card_files_are_found_by_folder_and_split() -> None:
    names = ["finemath-4plus/train-00000-of-00064.parquet", "finemath-3plus/train-00000.parquet", "x/test-0.parquet"]
    assert chosen({}, "finemath-4plus", names=names) == names[:1]
    assert chosen({}, "x", "test", names) == names[2:]
    assert chosen({}, names=["all.jsonl.zst"]) == ["all.jsonl.zst"]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("sample-1BT", "train", "no configuration `sample-1BT`; did you mean `sample-10BT`"),
        ("plain", "test", "`plain` of someone/texts has no split `test`"),
    ],
)
def test_what_the_card_does_not_have_is_refused(name: str, split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(CARD, name, split)


def test_files_of_a_split_that_cannot_be_read_are_not_passed_over() -> None:
    """The others alone would be another data set."""
    names = [*NAMES, "a/2.jsonl.gz"]
    with pytest.raises(
        UserError, match=r"1 of the 4 files of someone/texts that are asked for, such as a/2\.jsonl\.gz"
    ):
        chosen(CARD, "both", names=names)
    assert chosen(CARD, "plain", names=names) == ["a/0.parquet"]
    with pytest.raises(UserError, match="has no file of"):
        chosen({}, names=["train.csv"])


def test_a_branch_is_refused_because_it_moves() -> None:
    with pytest.raises(UserError, match="`revision: main` is no commit; expected its 40 hexadecimal digits"):
        hub.fetch({"hf": "someone/texts", "revision": "main", "split": "train"}, "web")


FILES = {
    "README.md": b"---\nconfigs:\n- {config_name: small, data_files: [{split: train, path: small/*}]}\n---\n# Texts\n",
    "small/0.jsonl": b"".join(json.dumps({"content": f"text {n}"}).encode() + b"\n" for n in range(3)),
    "large/0.jsonl": b"",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        found = path.removeprefix(f"/datasets/someone/texts/resolve/{COMMIT}/")
        if path.startswith("/api/datasets/someone/texts"):
            siblings = [{"rfilename": name} for name in FILES]
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in FILES.items()
            ]
            data = json.dumps(
                listing if "/tree/" in path else {"id": "someone/texts", "sha": COMMIT, "siblings": siblings}
            )
            self._send(200, data.encode(), body)
        elif found in FILES:
            self._send(200, FILES[found], body, {"ETag": f'"{found.replace("/", "-")}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    server.shutdown()


def texts(name: str = "small", repository: str = "someone/texts") -> Source:
    declared = {"hf": repository, "name": name, "split": "train", "revision": COMMIT, "text": "content"}
    return Source("web", declared, Fraction(0), Path())


def test_a_configuration_is_fetched_and_read(served: None) -> None:
    assert list(texts().documents()) == ["text 0", "text 1", "text 2"]
    assert [path.name for path in texts().paths()] == ["0.jsonl"]


def test_a_data_set_that_is_not_there_says_so_and_what_to_do(served: None) -> None:
    with pytest.raises(UserError, match=r"source `web`: someone/other cannot be fetched from the hub: .*`files`"):
        texts(repository="someone/other").paths()


def test_no_network_is_a_user_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be fetched from the hub"):
        texts().paths()
