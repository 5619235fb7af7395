"""Lines between rank 0 and every other rank, which say who is gone when ranks lose one another.

A collective that fails says that some connection closed, not whose. So every rank holds one idle TCP connection to rank
0, which its process's death closes, and on which a rank that fails where it cannot tell the others in an exchange says
so. Rank 0 watches them from a thread and passes on what it learns. Without a line (no route to rank 0) ranks find out
as before that a rank was lost, and not which.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

CONNECT_SECONDS = 10.0
WORD_SECONDS = 10.0  # the longest wait for a word on who is gone, after something has failed
GATHER_SECONDS = 0.3  # ranks of one machine die one after the other: rank 0 names them together


class Lines:
    """This rank's end. `spread(value)` gives rank 0's value to every rank, as JSON."""

    def __init__(self, rank: int, world: int, spread: Callable[[Any], Any]) -> None:
        self._rank = rank
        self._who = f"rank {rank} of {world} (process {os.getpid()} on {socket.gethostname()})"
        self._watch = _Watch() if rank == 0 else None
        told = spread(None if self._watch is None else {**self._watch.address(), "who": self._who})
        self._first = str(told["who"])
        self._line: socket.socket | None = None
        if self._watch is None:
            self._line = _connect(told["hosts"], told["port"])
            if self._line is not None:
                self._say({"token": told["token"], "rank": rank, "who": self._who})

    def failing(self, error: BaseException) -> None:
        """Say that this rank fails where the others wait for it."""
        said = {"lost": f"{self._who} failed: {type(error).__name__}: {_one_line(error)}"}
        if self._watch is not None:
            self._watch.pass_on(said["lost"])
        else:
            self._say(said)

    def word(self) -> str | None:
        """Who is gone, and how; None when nobody could say. Waits for at most `WORD_SECONDS`."""
        if self._watch is not None:
            return self._watch.word(WORD_SECONDS)
        if self._line is None:
            return None
        received = _receive(self._line, WORD_SECONDS)
        if received is None:
            return None
        return str(received["lost"]) if "lost" in received else f"{self._first} died"

    def close(self) -> None:
        """Leave in order: nobody takes it for a death."""
        if self._watch is not None:
            self._watch.close()
        elif self._line is not None:
            self._say({"bye": True})
            self._line.close()
            self._line = None

    def _say(self, value: dict[str, Any]) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.sendall(json.dumps(value).encode() + b"\n")


class _Watch:
    """Rank 0's end of all lines: a thread that listens until `close`."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(16)
        self._listener = socket.create_server(("", 0), backlog=1024)
        self._listener.setblocking(False)
        self._wake, self._waker = socket.socketpair()
        self._lines: dict[socket.socket, str] = {}  # of ranks that are there, with who they are
        self._read: dict[socket.socket, bytes] = {}
        self._words: list[str] = []
        self._lock = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def address(self) -> dict[str, Any]:
        return {"hosts": _own_hosts(), "port": self._listener.getsockname()[1], "token": self._token}

    def word(self, seconds: float) -> str | None:
        with self._lock:
            self._lock.wait_for(lambda: bool(self._words), seconds)
        time.sleep(GATHER_SECONDS if self._words else 0.0)
        with self._lock:
            return "; ".join(self._words) or None

    def pass_on(self, said: str) -> None:
        """Tell every rank."""
        with self._lock:
            self._words.append(said)
            self._lock.notify_all()
        self._tell()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):
                self._waker.send(b"x")
            self._thread.join(WORD_SECONDS)

    def _tell(self) -> None:
        data = json.dumps({"lost": "; ".join(self._words)}).encode() + b"\n"
        for line in list(self._lines):
            with contextlib.suppress(OSError):
                line.sendall(data)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            due: float | None = None
            while not self._closed:
                for key, _ in selector.select(None if due is None else max(0.0, due - time.monotonic())):
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif key.fileobj is not self._wake and self._hear(key.fileobj, selector) and due is None:
                        due = time.monotonic() + GATHER_SECONDS / 2
                if due is not None and time.monotonic() >= due:
                    due = None
                    self._tell()
        for line in (*self._read, self._listener, self._wake, self._waker):
            line.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            line, _ = self._listener.accept()
            _keep_alive(line)
            self._read[line] = b""
            selector.register(line, selectors.EVENT_READ)

    def _hear(self, line: Any, selector: selectors.BaseSelector) -> bool:
        """Take in what came on a line. Whether it is news of somebody who is gone."""
        try:
            data = line.recv(65536)
        except OSError:
            data = b""
        *whole, self._read[line] = (self._read[line] + data).split(b"\n")
        taken = [self._take(line, text) for text in whole]
        news = any(taken)
        if not data:
            selector.unregister(line)
            line.close()
            del self._read[line]
            who = self._lines.pop(line, None)
            if who is not None:
                news = self._add(f"{who} died") or news
        return news

    def _take(self, line: Any, text: bytes) -> bool:
        try:
            said = json.loads(text)
        except ValueError:
            return False
        if not isinstance(said, dict):  # of a stranger: any program may connect
            return False
        if line not in self._lines:
            if said.get("token") == self._token:
                self._lines[line] = str(said["who"])
            return False
        if "bye" in said:
            del self._lines[line]
            return False
        return self._add(str(said["lost"])) if "lost" in said else False

    def _add(self, said: str) -> bool:
        """News, unless others are known to be gone already: those who lost them close their lines, too."""
        with self._lock:
            self._words.append(said)
            self._lock.notify_all()
        return True


def _own_hosts() -> list[str]:
    """Names and addresses by which this machine may be reached, the best first."""
    name = socket.gethostname()
    hosts = [name]
    with contextlib.suppress(OSError):
        hosts += [str(found[4][0]) for found in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    return list(dict.fromkeys(hosts))


def _connect(hosts: list[str], port: int) -> socket.socket | None:
    own = socket.gethostname()
    for host in [*(["127.0.0.1"] if own == hosts[0] else []), *hosts]:
        with contextlib.suppress(OSError):
            line = socket.create_connection((host, port), CONNECT_SECONDS)
            _keep_alive(line)
            return line
    return None


def _keep_alive(line: socket.socket) -> None:
    """A machine that is gone without a word is noticed after a minute."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _receive(line: socket.socket, seconds: float) -> dict[str, Any] | None:
    """The next JSON line; {} when the other end is gone, None when nothing came."""
    data = b""
    line.settimeout(seconds)
    try:
        while b"\n" not in data:
            more = line.recv(65536)
            if not more:
                return {}
            data += more
    except TimeoutError:
        return None
    except OSError:
        return {}
    value = json.loads(data.split(b"\n")[0])
    return value if isinstance(value, dict) else {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
