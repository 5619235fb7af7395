"""Lines between ranks survive whatever else connects to them."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import pytest

from harness.train.lines import Lines


@pytest.mark.parametrize("said", [b"1\n", b"null\n", b'["token"]\n', b'"lost"\n', b"GET / HTTP/1.1\r\n\r\n", b"\xff\n"])
def test_a_stranger_on_the_line_is_ignored_and_a_rank_is_heard_after_it(said: bytes) -> None:
    told: list[Any] = []

    def spread(value: Any) -> Any:
        told.append(value)
        return value

    first = Lines(0, 2, spread)
    try:
        with socket.create_connection(("127.0.0.1", told[0]["port"]), 10) as stranger:
            stranger.sendall(said)
            time.sleep(0.1)
            other = Lines(1, 2, lambda _: told[0])
            other.failing(RuntimeError("out of luck"))
            word = first.word()
        assert word is not None and "out of luck" in word and f"process {os.getpid()}" in word
        other.close()
    finally:
        first.close()
