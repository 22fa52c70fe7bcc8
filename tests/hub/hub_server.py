"""A stand-in for the Hugging Face hub: the routes that looking up and downloading take."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubServer:
    """What the stand-in serves, and what it was asked.

    Parameters
    ----------
    repos : dict
        Repository to its files.
    refusals : dict
        Repository to (status, error code) of every answer about it.
    wrong_hashes : set of str
        Files whose hash the listing gets wrong.
    damaged : set of str
        Files that arrive with another last byte.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    wrong_hashes: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for `path`."""
        path = path.partition("?")[0]
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        repo = "/".join(parts[:2])
        if repo in self.refusals:
            status, code = self.refusals[repo]
            return status, {"X-Error-Code": code}, b"{}"
        files = self.repos.get(repo)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if len(parts) == 2:
            return 200, {"Content-Type": "application/json"}, self._listing(repo, files)
        name = "/".join(parts[4:])
        content = files[name]
        headers = {"ETag": f'"{_sha256(content)}"', "X-Repo-Commit": COMMIT}
        return 200, headers, content[:-1] + b"?" if name in self.damaged else content

    def _listing(self, repo: str, files: dict[str, bytes]) -> bytes:
        siblings = []
        for name, content in files.items():
            digest = "0" * 64 if name in self.wrong_hashes else _sha256(content)
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append({"rfilename": name, "size": len(content), "lfs": lfs})
        return json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """Run a stand-in on a free port of this machine."""
    state = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(with_body=True)

        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def _send(self, *, with_body: bool) -> None:
            state.requests.append(f"{self.command} {self.path}")
            status, headers, body = state.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
