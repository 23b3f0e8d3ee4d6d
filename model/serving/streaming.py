"""Answers that end as soon as their client hangs up.

Starlette's own streaming response notices that, under ASGI 2.4, only at the next line; the next
line of an infill is its result.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


class LineStream(Response):
    """Sends pieces as they come, and closes their generator at the end."""

    def __init__(self, lines: AsyncGenerator[bytes, None], media_type: str) -> None:
        # A proxy must not collect what a person wants to watch.
        super().__init__(media_type=media_type, headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        start: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with contextlib.aclosing(self._lines) as lines:
            await send(start)
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class WhileConnected(Response):
    """The response that `answer` makes, which is cancelled when the client hangs up before its end.

    The request's body must have been read.
    """

    def __init__(self, answer: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        answering = asyncio.create_task(self._respond(scope, receive, send))
        hung_up = asyncio.create_task(_until_hung_up(receive))
        try:
            await asyncio.wait({answering, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, hung_up):
                task.cancel()
            await asyncio.gather(answering, hung_up, return_exceptions=True)
        if not answering.cancelled():
            answering.result()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer()
        await response(scope, receive, send)


async def _until_hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
