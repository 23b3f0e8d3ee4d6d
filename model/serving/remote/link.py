"""HTTP to a remote engine: the key, time-outs, retries, and what went wrong as a `CompletionError`.

A question is asked again only while nothing of its answer has come: after a failed connection and
after the statuses that say "later". Delays double and are drawn at random, so that the windows of
an office do not come back all at once; where the server says when (`Retry-After`), that holds, for
later questions as well. A refused key is not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import random
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
    is_loopback,
)
from model.network import following_the_environment

_CONNECT_S = 5.0
_SILENCE_S = 60.0
"""How long an answer may pause."""
_LATER = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same question may be answered."""
_LONGEST_QUIET_S = 3600.0
"""The longest that a `Retry-After` is taken at its word."""
_MAX_REPLY_BYTES = 4 * 2**20
_SHOWN_CHARS = 200


def http_client(url: str, *, key: str = "", silence_s: float) -> httpx2.AsyncClient:
    """A client of the engine at `url`, by the environment's proxies unless it is on this machine.

    Raises `InvalidRequestError`.
    """
    try:
        parts = urlsplit(url)
        base = httpx2.URL(url)
        headers = httpx2.Headers({"Authorization": f"Bearer {key}"} if key else {})
    except (httpx2.InvalidURL, ValueError):
        raise InvalidRequestError(f"the engine's address {url!r} or its key is malformed") from None
    with following_the_environment(InvalidRequestError):
        return httpx2.AsyncClient(
            base_url=base,
            headers=headers,
            timeout=httpx2.Timeout(_CONNECT_S, read=silence_s),
            limits=httpx2.Limits(max_connections=None),
            # Reading the certificates takes 80 ms, which plain http has no use for.
            verify=httpx2.create_ssl_context() if parts.scheme == "https" else False,
            trust_env=not is_loopback(parts.hostname or ""),
            follow_redirects=False,  # the key is for this engine and no other
        )


class KeyRefusedError(InvalidRequestError):
    """The engine does not take our key, and asking again would not change that."""


class ComplaintError(InvalidRequestError):
    """The engine finds fault with the question itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often, and after how long, a question is asked again."""

    attempts: int = 4
    first_s: float = 0.25
    last_s: float = 8.0

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt `attempt`, counted from 0: between half and
        the whole of a delay that doubles."""
        return min(self.first_s * 2**attempt, self.last_s) * random.uniform(0.5, 1)


class Link:
    """Asks one engine. `url` is the root of its API."""

    def __init__(self, url: str, *, key: str = "", retries: Retries | None = None) -> None:
        self._retries = retries or Retries()
        self._key = key
        self._quiet_until = 0.0
        self._http = http_client(url, key=key, silence_s=_SILENCE_S)
        self.name = urlsplit(url).netloc.rpartition("@")[2]
        """Names the engine to people."""

    async def close(self) -> None:
        """Hang up on everything. Idempotent."""
        await self._http.aclose()

    async def get(self, path: str, *, accept: Collection[int] = ()) -> tuple[int, Any]:
        """The status and the JSON (None if it is none) that `path` answers with, at the first try.

        404, 405, 501 and those in `accept` are answers. Raises a `CompletionError` for others.
        """
        request = self._http.build_request("GET", path)
        async with self._sent(request) as response:
            body = await response.aread()
            fine = (404, 405, 501, *accept)
            if not response.is_success and response.status_code not in fine:
                raise self._refusal(response, body)
            try:
                return response.status_code, json.loads(body)
            except (ValueError, RecursionError):
                return response.status_code, None

    async def events(
        self, path: str, body: dict[str, object], *, until: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Ask, and give the objects of the answer as they come: one, or one an event of a stream.

        `until`: the clock's time by which no further attempt may begin. Raises a
        `CompletionError`. Closing this hangs up, which stops an engine that looks.
        """
        async with contextlib.AsyncExitStack() as stack:
            response = await self._opened(stack, path, body, until)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                yield _object(await _whole(response), self.name)
                return
            async for event in httpx2.EventSource(response):
                if event.data == "[DONE]":
                    return
                fields = _object(event.data, self.name)
                if "error" in fields:
                    raise EngineUnavailableError(f"{self.name} failed: {self._said(event.data)}")
                yield fields

    async def _opened(
        self, stack: contextlib.AsyncExitStack, path: str, body: dict[str, object], until: float
    ) -> httpx2.Response:
        """The response once it has begun well, after as many attempts as it takes."""
        quiet_s = self._quiet_until - time.monotonic()
        if quiet_s > 0:
            why = f"{self.name} wants no request for {quiet_s:.0f} s"
            await self._pause(quiet_s, until, EngineOverloadedError(why))
        for attempt in range(self._retries.attempts):
            try:
                request = self._http.build_request("POST", path, json=body)
                # Closed with the stack: what has failed is not kept until the end of the answer.
                async with contextlib.AsyncExitStack() as trial:
                    response = await trial.enter_async_context(self._sent(request))
                    if response.is_success:
                        stack.push_async_exit(trial.pop_all())
                        return response
                    raise self._refusal(response, await response.aread())
            except (EngineUnavailableError, EngineOverloadedError) as error:
                if attempt == self._retries.attempts - 1:
                    raise
                quiet_s = self._quiet_until - time.monotonic()
                await self._pause(max(self._retries.delay_s(attempt), quiet_s), until, error)
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    async def _pause(delay_s: float, until: float, why: CompletionError) -> None:
        """Wait; raises `why` where no time would be left for another attempt after that."""
        if time.monotonic() + delay_s >= until:
            raise why
        await asyncio.sleep(delay_s)

    @contextlib.asynccontextmanager
    async def _sent(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Response]:
        """The response to `request`; whatever goes wrong on the way is a `CompletionError`."""
        if self._http.is_closed:
            raise EngineUnavailableError("the connection to the engine is closed")
        try:
            response = await self._http.send(request, stream=True)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            raise EngineUnavailableError(
                f"{self.name} does not answer ({_cause(error)})"
            ) from error

    def _said(self, body: str | bytes) -> str:
        """The engine's own words, for people and logs. Some engines quote the key."""
        message = _message(body)
        message = message.replace(self._key, "…") if self._key else message
        return message if len(message) <= _SHOWN_CHARS else f"{message[:_SHOWN_CHARS]}…"

    def _refusal(self, response: httpx2.Response, body: bytes) -> CompletionError:
        """The error that a status stands for, with the engine's own words."""
        status, message = response.status_code, self._said(body)
        said = f" (HTTP {status}{': ' if message else ''}{message})"
        if status in (401, 403):
            return KeyRefusedError(
                f"{self.name} does not take the key{said}; give another by the command "
                "`Mezzotint: Set API Key` or in MEZZOTINT_API_KEY"
            )
        if status not in _LATER:
            return ComplaintError(f"{self.name} refuses the request{said}")
        later_s = _retry_after_s(response.headers.get("retry-after", ""))
        if later_s is not None:
            self._quiet_until = time.monotonic() + min(later_s, _LONGEST_QUIET_S)
        if status == 429:
            return EngineOverloadedError(f"{self.name} has had enough requests for now{said}")
        return EngineUnavailableError(f"{self.name} is in trouble{said}")


async def _whole(response: httpx2.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_REPLY_BYTES:
            raise EngineUnavailableError("the engine's answer is larger than 4 MiB")
    return body


def _object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise EngineUnavailableError(f"{name} answers with something that is no JSON object")
    return cast("dict[str, Any]", fields)


def _message(body: str | bytes) -> str:
    """What a refusal says, in the shapes that engines use; "" for none of them."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    match reply:
        case {"error": {"message": str(message)}} | {"error": str(message)}:
            pass
        case {"message": str(message)} | {"detail": str(message)}:
            pass
        case {"detail": detail}:
            message = json.dumps(detail)
        case _:
            return ""
    return message


def _retry_after_s(header: str) -> float | None:
    """Seconds that a `Retry-After` asks for (RFC 9110, 10.2.3: a number or a date)."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _cause(error: httpx2.HTTPError) -> str:
    """A few words on a failed connection; httpx's own text may be empty."""
    return str(error) or type(error).__name__
