"""The client's side of the wire: an `EngineConnection` over HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import httpx2

from model.api import (
    CompletionError,
    EngineHealth,
    EngineUnavailableError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.network import following_the_environment
from model.serving.protocol import (
    HEARTBEAT_S,
    InfillCall,
    ProtocolError,
    decode,
    decode_object,
    decode_reply,
    encode_call,
)

_CONNECT_S = 5.0
# Generous: an engine that imports torch on a busy machine may hold Python's lock for seconds.
_PATIENT = httpx2.Timeout(_CONNECT_S, read=15 * HEARTBEAT_S)


class EngineClient:
    """Talks to one engine at `socket`: `unix:/path/to.sock`, or an `http://` or `https://` URL.

    Raises `InvalidRequestError` when `socket` is none of these.
    """

    def __init__(self, socket: str, token: str) -> None:
        self._socket = socket
        is_unix = socket.startswith("unix:")
        if not is_unix and not socket.startswith(("http://", "https://")):
            raise InvalidRequestError(
                f"the engine's address is {socket!r}; it must begin with unix:, http:// or https://"
            )
        with following_the_environment(InvalidRequestError):
            # Reading the certificates takes 80 ms, which a local engine has no use for. Those of a
            # private authority come by SSL_CERT_FILE.
            trusted = httpx2.create_ssl_context() if socket.startswith("https://") else False
        transport = httpx2.AsyncHTTPTransport(
            uds=socket.removeprefix("unix:") if is_unix else None,
            verify=trusted,
            # An open lease and the requests of a fast typist must not wait for each other.
            limits=httpx2.Limits(max_connections=None),
            trust_env=False,
        )
        try:
            self._http = httpx2.AsyncClient(
                base_url="http://engine" if is_unix else socket,
                headers={"Authorization": f"Bearer {token}"},
                # The caller knows how long it wants to wait for an answer.
                timeout=httpx2.Timeout(_CONNECT_S, read=None),
                transport=transport,
                trust_env=False,  # no proxy, and no .netrc that would replace the token
            )
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise InvalidRequestError(
                f"the engine's address {socket!r} or its token is malformed: {error}"
            ) from None

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """Have the engine fill the holes of `request`; cancelling hangs up, which stops it.

        Raises the `CompletionError` that the engine answers with, or `EngineUnavailableError`.
        """
        call = InfillCall(request=request, frames=on_frame is not None)
        outcome: InfillResult | CompletionError = EngineUnavailableError(
            f"the engine at {self._socket} went away before its result"
        )
        async with self._lines("POST", "/infill", content=encode_call(call)) as lines:
            async for line in lines:  # to the very end, so that the connection can be used again
                reply = decode_reply(line)
                if not isinstance(reply, Frame):
                    outcome = reply
                elif on_frame is not None:
                    on_frame(reply)
        if isinstance(outcome, CompletionError):
            raise outcome
        return outcome

    async def health(self) -> EngineHealth:
        """Ask how the engine is.

        Raises `EngineUnavailableError`.
        """
        async with self._lines("GET", "/health", timeout=_PATIENT) as lines:
            async for line in lines:
                return decode(EngineHealth, decode_object(line), "health")
        raise EngineUnavailableError(f"the engine at {self._socket} says nothing of its health")

    async def hold_lease(self) -> None:
        """Keep the engine alive until cancelled; returns when it leaves of its own accord.

        Raises `EngineUnavailableError` when it vanishes, `InvalidRequestError` on a wrong token.
        """
        async with self._lines("GET", "/lease", timeout=_PATIENT) as lines:
            async for line in lines:
                if "leaving" in decode_object(line):
                    return
        raise EngineUnavailableError(f"the engine at {self._socket} went away without a word")

    async def close(self) -> None:
        """Hang up on everything. Idempotent."""
        await self._http.aclose()

    @contextlib.asynccontextmanager
    async def _lines(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        timeout: httpx2.Timeout | None = None,
    ) -> AsyncGenerator[AsyncIterator[str]]:
        """The lines of the answer; whatever goes wrong on the way is a `CompletionError`."""
        if self._http.is_closed:
            raise EngineUnavailableError("the connection to the engine is closed")
        request = self._http.build_request(
            method, path, content=content, timeout=timeout or self._http.timeout
        )
        try:
            response = await self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    raise _refusal(response.status_code, await response.aread())
                yield response.aiter_lines()
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            raise EngineUnavailableError(
                f"the engine at {self._socket} does not answer ({type(error).__name__})"
            ) from error
        except ProtocolError as error:
            raise EngineUnavailableError(
                f"what answers at {self._socket} is no engine of this version: {error}"
            ) from error


def _refusal(status: int, body: bytes) -> CompletionError:
    try:
        reply = decode_reply(body)
    except ProtocolError:
        reply = None
    if isinstance(reply, CompletionError):
        return reply
    return EngineUnavailableError(f"what answers is no Mezzotint engine (HTTP status {status})")
