"""A hub and a package index on this machine, over real HTTP, with every fault that a test asks for;
and a small backbone that both have.

`python fake_sources.py ARGUMENT...` is `mezzotint download`, and with `fetch-process` before its
argument it is `model.backbone.fetch_process`, with the backbones of `MEZZOTINT_TEST_KNOWN` in place
of the real ones.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from model.backbone.catalogue import KNOWN, Known, Wheels

PIECE_BYTES = 40_000
DATA = random.Random(7).randbytes(3 * PIECE_BYTES - 11_111)
WHEELS = Wheels(
    project="somebodys-part{}",
    version="0.9.0",
    member="*/data/part{:02}.bin",
    num_pieces=3,
    piece_bytes=PIECE_BYTES,
)
FILE = "tiny-q4_k_m.gguf"


def backbone(data: bytes = DATA) -> Known:
    """A backbone whose file holds `data`."""
    return Known(
        name="tiny",
        title="Tiny (Q4_K_M)",
        licence="Apache-2.0",
        file_name=FILE,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        repository="someone/tiny-GGUF",
        wheels=WHEELS,
    )


def wheel_name(number: int) -> str:
    return f"somebodys_part{number}-0.9.0-py3-none-any.whl"


def wheel(number: int, data: bytes) -> bytes:
    """A wheel with one piece of `data`, and with code that nobody is to run."""
    piece = data[(number - 1) * PIECE_BYTES : number * PIECE_BYTES]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"somebodys_part{number}/__init__.py", "raise SystemExit('it was run')")
        file.writestr(f"somebodys_part{number}/data/part{number:02}.bin", piece)
        file.writestr(f"somebodys_part{number}-0.9.0.dist-info/METADATA", "Name: somebodys\n")
    return packed.getvalue()


@dataclass
class Fault:
    """What goes wrong with a file."""

    after: int = 0
    """The connection is closed at this byte of the file."""
    times: int = sys.maxsize


class FakeSources:
    """Serves the file at the hub's address and its pieces at the index's."""

    def __init__(self, data: bytes = DATA) -> None:
        self.files = {FILE: data}
        for number in range(1, WHEELS.num_pieces + 1):
            self.files[wheel_name(number)] = wheel(number, data)
        self.listed = {name: hashlib.sha256(file).hexdigest() for name, file in self.files.items()}
        """The digests that the index tells."""
        self.asked: list[tuple[str, int]] = []
        """Files whose content was asked for, and from which byte on."""
        self.sent: dict[str, int] = {}
        """Bytes of each file that went out."""
        self.breaks: dict[str, Fault] = {}
        self.status: dict[str, int] = {}
        self.ignores_ranges = False
        self.tells_length: int | None = 0
        """Bytes by which it lies about lengths; None: it tells none."""
        self.html = False
        self.password = ""
        """The index wants `user` with this."""
        self.goes_on = threading.Event()
        """Cleared, every file stops in the middle."""
        self.goes_on.set()
        self.url = ""

    @property
    def index_url(self) -> str:
        return f"{self.url}/simple/"

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    def page(self, project: str) -> tuple[str, bytes] | None:
        """Content type and body of the index's page of a project."""
        files = [n for n in self.files if n.startswith(project.replace("-", "_") + "-")]
        if not files:
            return None
        if self.html:
            links = "".join(
                f'<a href="../../files/{name}#sha256={self.listed[name]}">{name}</a><br>'
                for name in ("somebodys_part1-0.9.0.tar.gz", *files)
                if name in self.listed
            )
            return "text/html", f"<!DOCTYPE html><body>{links}</body>".encode()
        listed = [
            {"filename": "somebodys_part1-0.8.0-py3-none-any.whl", "url": "no", "hashes": {}},
            {"filename": "somebodys_part1-0.9.0.tar.gz", "url": "no", "hashes": {}},
            *(
                {
                    "filename": name,
                    "url": f"{self.url}/files/{name}",
                    "size": len(self.files[name]),
                    "hashes": {"sha256": self.listed[name]},
                }
                for name in files
            ),
        ]
        return "application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeSources

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        wanted = f"Basic {base64.b64encode(f'user:{self.fake.password}'.encode()).decode()}"
        if self.fake.password and self.headers.get("Authorization") != wanted:
            self._whole(401, "text/plain", b"")
        elif path.startswith("/simple/"):
            page = self.fake.page(path.split("/")[2])
            self._whole(*((200, *page) if page else (404, "text/plain", b"")))
        elif name in self.fake.status:
            self._whole(self.fake.status[name], "text/plain", b"")
        elif name in self.fake.files:
            self._file(name)
        else:
            self._whole(404, "text/plain", b"")

    def _whole(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        fake, data = self.fake, self.fake.files[name]
        start = 0
        if (wanted := self.headers.get("Range")) and not fake.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        fake.asked.append((name, start))
        if start >= len(data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        lie = fake.tells_length
        self.send_response(206 if start else 200)
        if start:
            total = len(data) + (lie or 0)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if lie is not None:
            self.send_header("Content-Length", str(len(data) - start + lie))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        fault = fake.breaks.get(name)
        end = len(data)
        if fault is not None and fault.times > 0:
            fault.times -= 1
            end = max(start, fault.after)
        self._send(name, data, start, end)

    def _send(self, name: str, data: bytes, start: int, end: int) -> None:
        middle = (start + end) // 2
        with contextlib.suppress(ConnectionError):
            self._write(name, data[start:middle])
            self.fake.goes_on.wait(60)
            self._write(name, data[middle:end])

    def _write(self, name: str, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.fake.sent[name] = self.fake.sent.get(name, 0) + len(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def fake_sources(data: bytes = DATA) -> Iterator[FakeSources]:
    fake = FakeSources(data)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.goes_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def environment_of(*known: Known) -> str:
    """What `MEZZOTINT_TEST_KNOWN` is set to."""
    return json.dumps([asdict(each) for each in known])


def take_environments_backbones() -> None:
    """Put the backbones of `MEZZOTINT_TEST_KNOWN` in the place of the real ones: the first is the
    default."""
    for each, name in zip(json.loads(os.environ["MEZZOTINT_TEST_KNOWN"]), [*KNOWN], strict=False):
        wheels = Wheels(**each.pop("wheels"))
        KNOWN[name] = Known(**{**each, "wheels": wheels, "name": name})


if __name__ == "__main__":
    from model.backbone import __main__, fetch_process

    take_environments_backbones()
    _, *arguments = sys.argv
    if arguments[:1] == ["fetch-process"]:
        raise SystemExit(fetch_process.main(arguments[1]))
    raise SystemExit(__main__.main(arguments))
