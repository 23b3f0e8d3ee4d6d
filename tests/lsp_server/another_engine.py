"""What answers as llama.cpp does, in this event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator


class AnotherEngine:
    """Answers a path with a status and an object."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[str, tuple[int, object]] = {"/health": (200, {"status": "ok"})}
        self.authorizations: dict[str, str] = {}
        """What each path was last asked with."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            path = first.split(" ")[1]
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            self.authorizations[path] = headers.get("authorization", "")
            status, value = self.answers[path]
            body = json.dumps(value).encode()
            head = f"HTTP/1.1 {status} X\r\nserver: llama.cpp\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def another_engine() -> AsyncIterator[AnotherEngine]:
    engine = AnotherEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()
