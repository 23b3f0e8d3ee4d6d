"""A server in this event loop that answers with what it was given, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int = 200
    body: str | Sequence[str] = ""
    """A whole body, or the parts of one that come one after another."""
    headers: Mapping[str, str] = field(default_factory=dict)
    ends: bool = True
    """False: after the body the server neither ends nor goes on."""
    breaks: bool = False
    """Whether the connection breaks off in the middle of the body."""


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    return Reply(
        status=status,
        body=json.dumps(value),
        headers={
            "content-type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        },
    )


def stream_reply(*events: object, done: bool = True, ends: bool = True) -> Reply:
    """Server-sent events, as all these engines frame them."""
    parts = [f"data: {json.dumps(event)}\n\n" for event in events]
    return Reply(
        body=[*parts, "data: [DONE]\n\n"] if done else parts,
        headers={"content-type": "text/event-stream"},
        ends=ends,
    )


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class FakeRemote:
    """Answers each route with its replies in turn, and with the last one from then on."""

    def __init__(self, routes: Mapping[str, Reply | Sequence[Reply]]) -> None:
        self._routes = {
            path: [replies] if isinstance(replies, Reply) else list(replies)
            for path, replies in routes.items()
        }
        self.asked: list[Asked] = []
        self.hung_up = asyncio.Event()
        """Somebody hung up on an answer that had not ended."""
        self.url = ""

    def asked_of(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            method, path, _ = first.split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append(Asked(method, path, headers, json.loads(body) if body else None))
            replies = self._routes.get(path, [Reply(status=404)])
            await self._answer(replies.pop(0) if len(replies) > 1 else replies[0], reader, writer)
        writer.close()

    async def _answer(
        self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        parts = [reply.body] if isinstance(reply.body, str) else reply.body
        headers = {**reply.headers, "connection": "close", "transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for part in filter(None, parts):
            raw = part.encode()
            writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            await writer.drain()
        if reply.breaks:
            return
        if not reply.ends:
            await reader.read()  # nothing, until the client hangs up
            self.hung_up.set()
            return
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@contextlib.asynccontextmanager
async def fake_remote(
    routes: Mapping[str, Reply | Sequence[Reply]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeRemote]:
    fake = FakeRemote(routes)
    handlers = set[asyncio.Task[None]]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await fake.serve(reader, writer)
        finally:
            handlers.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
