"""A small Hugging Face Hub for tests: the routes a pull uses, as the real one answers them, and what can go wrong.

`GET /api/models/{repo}/revision/{rev}?blobs=true` lists siblings; `/{repo}/resolve/{rev}/{file}` sends a small file
and redirects to a CDN path for an LFS file; both take ranges.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOCK = 1 << 18


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """`files` of each repository by name; those named `*.safetensors` are in LFS. Faults are set while it runs."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    tokens: dict[str, str] = field(default_factory=dict)
    """The token that opens a repository; without an entry it is public."""
    gated: set[str] = field(default_factory=set)
    cuts: list[int] = field(default_factory=list)
    """Offsets in an LFS file at which a connection breaks, each once."""
    damage: bool = False
    """LFS files come with a wrong byte."""
    hold_at: int | None = None
    """Offset in an LFS file at which sending waits for `go_on`."""
    go_on: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(path, Range, Authorization) of each GET, in order."""
    ids: dict[str, bytes] = field(default_factory=dict)

    def add(self, repository: str, files: dict[str, bytes]) -> None:
        self.repositories[repository] = files
        self.ids |= {hashlib.sha256(c).hexdigest(): c for n, c in files.items() if n.endswith(".safetensors")}

    def described(self, repository: str, commit: str) -> dict[str, Any]:
        return {
            "_id": "1",
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "private": repository in self.tokens,
            "gated": "manual" if repository in self.gated else False,
            "downloads": 7,
            "likes": 1,
            "tags": ["mlx"],
            "siblings": [_sibling(name, content) for name, content in self.repositories[repository].items()],
        }


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"rfilename": name, "size": len(content)}
    if not name.endswith(".safetensors"):
        return found | {"blobId": git_id(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    return found | {"blobId": "f" * 40, "lfs": {"sha256": sha256, "size": len(content), "pointerSize": 134}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if path == "/api/models":
            self._json([self.hub.described(name, COMMIT) for name in self.hub.repositories])
        elif found := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
            self._describe(*found.groups())
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            assert self.headers["Authorization"] is None, "a token must not leave the hub's own host"
            self._send(self.hub.ids[found[1]], is_lfs=True)
        else:
            self._error(404, "RepoNotFound", "Repository not found")

    def _describe(self, repository: str, revision: str) -> None:
        if not self._may_see(repository):
            return
        commit = self.hub.revisions.get(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            self._json(self.hub.described(repository, commit))

    def _may_see(self, repository: str) -> bool:
        token = self.hub.tokens.get(repository)
        if repository not in self.hub.repositories or (token and self.headers["Authorization"] != f"Bearer {token}"):
            has_token = self.headers["Authorization"] is not None
            self._error(404 if has_token else 401, "RepoNotFound", "Repository not found")
            return False
        return True

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        if not self._may_see(repository):
            return
        if repository in self.hub.gated:
            self._error(403, "GatedRepo", f"Access to model {repository} is restricted.")
            return
        content = self.hub.repositories[repository].get(name)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        commit = {"X-Repo-Commit": self.hub.revisions[revision]}
        if not name.endswith(".safetensors"):
            self._send(content, commit | {"ETag": f'"{git_id(content)}"'})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256}"', "ETag": f'"{sha256}"'}
        self._headers(
            302, 0, commit | linked | {"Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{sha256}"}
        )

    def _send(self, content: bytes, headers: dict[str, str] | None = None, *, is_lfs: bool = False) -> None:
        begin = 0
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        extra = {"Accept-Ranges": "bytes", **(headers or {})}
        if found:
            begin = int(found[1])
            extra["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._headers(206 if found else 200, len(content) - begin, extra)
        if self.command == "HEAD":
            return
        view = memoryview(content)
        for at in range(begin, len(content), BLOCK):
            block = view[at : at + BLOCK]
            if is_lfs and self._is_cut(at):
                return
            if is_lfs and self.hub.hold_at is not None and at >= self.hub.hold_at:
                self.hub.held.set()
                self.hub.go_on.wait(30)
            if is_lfs and self.hub.damage:
                block = memoryview(bytes(len(block)))
            try:
                self.wfile.write(block)
            except OSError:
                return

    def _is_cut(self, at: int) -> bool:
        if not self.hub.cuts or at < self.hub.cuts[0]:
            return False
        self.hub.cuts.pop(0)
        self.close_connection = True
        return True

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self._headers(200, len(body), {"Content-Type": "application/json"})
        self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._headers(status, len(body), {"X-Error-Code": code, "X-Error-Message": message})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            server.shutdown()
            thread.join()
