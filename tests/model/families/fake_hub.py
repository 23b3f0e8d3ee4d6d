"""A Hugging Face hub on this machine: the routes that its client asks, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "5d1f0a7c" * 5
REPOSITORY = "someone/diffuser"


class FakeHub:
    """Serves `files` as the one commit of the repository `someone/diffuser`, which is also its
    revisions `main` and `v1`. Its revision `gated` wants terms accepted, `pickle` holds no
    safetensors, `huge` is larger than any disk, and `broken` is the hub's own fault."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.licence = "apache-2.0"
        self.asked: list[str] = []
        """Methods and paths, in the order of their coming."""
        self.goes_on = threading.Event()
        """Cleared, a file of weights stops in the middle."""
        self.goes_on.set()
        self.url = ""

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        return [path.rpartition("/")[2] for path in self.asked if path.startswith("GET /someone/")]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of what is at `path`."""
        if not path.startswith((f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/")):
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path.endswith("/auth-check"):
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        _, _, rest = path.removeprefix("/api/models").removeprefix(f"/{REPOSITORY}").partition("/")
        what, _, rest = rest.partition("/")
        revision, _, file = rest.partition("/")
        if revision == "broken":
            return 500, {}, b"{}"
        if revision not in ("", "main", "v1", COMMIT, "gated", "pickle", "huge"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if what == "resolve":
            return self._file(file)
        listed = [
            self._entry(name, data, size=10**18 if revision == "huge" else len(data))
            for name, data in self.files.items()
            if revision != "pickle" or not name.endswith(".safetensors")
        ]
        if what == "tree":
            tree = [
                {"type": "file", "path": e["rfilename"], "oid": e["blobId"], **e} for e in listed
            ]
            return 200, {}, json.dumps(tree).encode()
        info = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": listed,
                "gated": "auto" if revision == "gated" else False, "private": False,
                "downloads": 0, "likes": 0, "tags": [f"license:{self.licence}"]}  # fmt: skip
        return 200, {}, json.dumps(info).encode()

    def _entry(self, name: str, data: bytes, *, size: int) -> dict[str, Any]:
        return {"rfilename": name, "size": size, "blobId": hashlib.sha1(data).hexdigest()}

    def _file(self, name: str) -> tuple[int, dict[str, str], bytes]:
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = f'"{hashlib.sha1(self.files[name]).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, self.files[name]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        status, headers, body = self.hub.answer(path)
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status = 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if has_body:
            self._send(body[start:], slowly=path.endswith(".safetensors"))

    def _send(self, body: bytes, *, slowly: bool) -> None:
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if slowly:
                self.hub.goes_on.wait(60)
            self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def fake_hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.goes_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
