"""As much of a W&B server as a run needs: it answers a client's questions and keeps what the client sends."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40


@dataclass
class Kept:
    """What the server holds of one run. history: lines by their offset. uploads: how many clients it was opened by."""

    settings: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    opened: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[line] for line in sorted(self.history)]


class WandbServer:
    """runs: by id. refuses: answers every request as to a wrong key. lines: history lines taken, repeats counted."""

    def __init__(self) -> None:
        self.runs: dict[str, Kept] = {}
        self.refuses = False
        self.lines = 0
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": _ENTITY, "bucket": self._bucket(variables["name"])}}
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._upsert(variables), "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.address}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        kept = self.runs.get(run)
        if kept is None:
            return None
        tail = [json.dumps(row) for row in kept.rows[-1:]]
        return {
            "id": "b",
            "name": run,
            "displayName": kept.settings.get("displayName"),
            "summaryMetrics": json.dumps(kept.summary),
            "logLineCount": 0,
            "historyLineCount": len(kept.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": "{}",
            "tags": kept.settings.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        kept = self.runs.setdefault(variables["name"], Kept())
        if variables.get("displayName") is not None:
            kept.opened += 1
        kept.settings |= {name: value for name, value in variables.items() if value is not None}
        project = {"id": "p", "name": variables["project"], "entity": _ENTITY}
        return {
            "id": "b",
            "name": variables["name"],
            "displayName": kept.settings.get("displayName"),
            "description": None,
            "config": "{}",
            "sweepName": None,
            "project": project,
            "historyLineCount": len(kept.history),
        }

    def stream(self, run: str, body: dict[str, Any]) -> None:
        kept = self.runs.setdefault(run, Kept())
        files = body.get("files") or {}
        lines = files.get("wandb-history.jsonl") or {"offset": 0, "content": []}
        for number, line in enumerate(lines["content"], start=lines["offset"]):
            self.lines += 1
            kept.history[number] = json.loads(line)
        for line in (files.get("wandb-summary.json") or {"content": []})["content"]:
            kept.summary = json.loads(line)
        kept.complete = bool(body.get("complete"))


_ENTITY = {"id": "e", "name": "me"}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if server.refuses:
                self._say(401, {"errors": [{"message": "invalid api key"}]})
                return
            answer: dict[str, Any] = {}
            with server.lock:
                if self.path == "/graphql":
                    asked = json.loads(body)
                    answer = {"data": server.answer(asked["query"], asked.get("variables") or {})}
                elif self.path.endswith("/file_stream"):
                    server.stream(self.path.split("/")[-2], json.loads(body))
            self._say(200, answer)

        do_PUT = do_POST

        def do_GET(self) -> None:
            self._say(200, {})

        def _say(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words: Any) -> None: ...

    return Handler


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    try:
        yield server
    finally:
        server.close()
