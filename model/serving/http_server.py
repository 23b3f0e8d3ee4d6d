"""The engine's HTTP side: a `Completer` behind `/health`, `/infill` and `/lease`.

    GET  /health   how the engine is; needs no token, but refuses a wrong one
    POST /infill   one infill; `protocol` has the body and the answer; hanging up cancels it
    GET  /lease    a line every few seconds; an engine that an editor started lives while somebody
                   reads one, and the kernel hangs up for readers that were killed

No browser may call any of them, whatever page it shows: requests with an `Origin` are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import logging
import math
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.api import (
    Completer,
    CompletionError,
    EngineHealth,
    EngineUnavailableError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
)
from model.serving.protocol import (
    HEARTBEAT_S,
    InfillCall,
    ProtocolError,
    decode_call,
    encode_error,
    encode_object,
    encode_reply,
)

MAX_BODY_BYTES = 4 * 2**20
FIRST_LEASE_S = 30.0
GRACE_S = 3.0
"""An editor that restarts its language server should find the model still loaded."""

_TICK_S = 0.2
_SHUTDOWN_S = 2

logger = logging.getLogger(__name__)


class Lifetime:
    """Knows how long the engine is needed.

    `leased`: an editor started it, so it leaves when no lease is held for `GRACE_S`, or when none
    was taken within `FIRST_LEASE_S`. `idle_s`: it leaves after so many seconds without an infill.
    """

    def __init__(
        self,
        *,
        leased: bool = False,
        idle_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leased = leased
        self._idle_s = idle_s
        self._clock = clock
        self._leases = 0
        self._infills = 0
        self._last_infill = self._started = clock()
        self._last_lease: float | None = None

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Somebody needs the engine while this context is open."""
        self._leases += 1
        try:
            yield
        finally:
            self._leases -= 1
            self._last_lease = self._clock()

    @contextlib.contextmanager
    def infill(self) -> Generator[None]:
        """The engine has work while this context is open."""
        self._infills += 1
        try:
            yield
        finally:
            self._infills -= 1
            self._last_infill = self._clock()

    def reason_to_leave(self, *, failed: bool) -> str | None:
        """Why the engine should leave now, or None.

        A `failed` one leaves as soon as nobody is left to be told, so that the next start
        tries again.
        """
        now = self._clock()
        if not self._infills and now - self._last_infill >= self._idle_s:
            return "it had nothing to do"
        if not self.leased:
            return "the model could not be loaded" if failed else None
        if self._leases:
            return None
        if self._last_lease is None:
            return "nobody took a lease" if now - self._started >= FIRST_LEASE_S else None
        grace_s = 0.0 if failed else GRACE_S
        return "its last client has gone" if now - self._last_lease >= grace_s else None


class ModelHost:
    """Loads the completer in a thread, and has everybody who asks for it wait until then."""

    def __init__(self, load: Callable[[], Completer], *, model: str) -> None:
        self._load = load
        self._model = model
        self._loaded: asyncio.Future[Completer] = asyncio.get_running_loop().create_future()
        # A daemon, so that an engine nobody needs any more leaves in the middle of a long load.
        threading.Thread(target=self._run, name="model-loader", daemon=True).start()

    def _run(self) -> None:
        started = time.monotonic()
        loop = self._loaded.get_loop()
        completer: Completer | None = None
        failure = CompletionError("")
        try:
            completer = self._load()
            logger.info("Loaded %s in %.1f s", self._model, time.monotonic() - started)
        except CompletionError as error:
            failure = error
            logger.error("Cannot load %s: %s", self._model, error)
        except Exception as error:
            failure = CompletionError(f"loading {self._model} failed: {error!r}")
            logger.exception("Cannot load %s", self._model)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the engine has left
            loop.call_soon_threadsafe(self._settle, completer, failure)

    def _settle(self, completer: Completer | None, failure: CompletionError) -> None:
        if completer is not None:
            self._loaded.set_result(completer)
            return
        self._loaded.set_exception(failure)
        self._loaded.exception()  # nobody may ever wait for it; that is no mistake

    @property
    def failure(self) -> CompletionError | None:
        """Why the model could not be loaded."""
        error = self._loaded.exception() if self._loaded.done() else None
        return error if isinstance(error, CompletionError) else None

    def health(self) -> EngineHealth:
        """What `/health` says."""
        if not self._loaded.done():
            return EngineHealth(
                state="loading", message=f"loading {self._model}", model=self._model
            )
        if self.failure is not None:
            return EngineHealth(state="failed", message=str(self.failure), model=self._model)
        # Only a completer that runs in this process knows.
        slow: list[str] = getattr(self._loaded.result(), "problems", [])
        message = "; ".join([f"serving {self._model}", *(f"slowly: {why}" for why in slow)])
        return EngineHealth(state="ready", message=message, model=self._model)

    async def completer(self) -> Completer:
        """The completer, once it is loaded.

        Raises the `CompletionError` that its loading ended in.
        """
        return await asyncio.shield(self._loaded)

    async def close(self) -> None:
        """Close the completer if there is one."""
        if self._loaded.done() and self.failure is None:
            await self._loaded.result().close()


class EngineServer:
    """The routes, and what they share."""

    def __init__(self, host: ModelHost, lifetime: Lifetime, token: str) -> None:
        self._host = host
        self._lifetime = lifetime
        self._leaving = asyncio.Event()
        self._fills: set[asyncio.Task[InfillResult | CompletionError]] = set()
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/infill", self._infill, methods=["POST"]),
                Route("/lease", self._lease),
            ],
            middleware=[Middleware(Guard, token=token)],
        )

    def leave(self) -> None:
        """End every lease with a farewell, and every infill with an error."""
        self._leaving.set()
        for fill in self._fills:
            fill.cancel()

    async def _health(self, _: Request) -> Response:
        # Who hears here that the load failed need not come for a lease to be told again.
        with self._lifetime.lease() if self._host.failure else contextlib.nullcontext():
            return JSONResponse(dataclasses.asdict(self._host.health()))

    async def _infill(self, request: Request) -> Response:
        body = await _read_body(request)
        if body is None:
            return _refusal(413, f"the request is larger than {MAX_BODY_BYTES >> 20} MiB")
        try:
            call = decode_call(body)
        except (ProtocolError, InvalidRequestError) as error:
            return _refusal(400, str(error))
        return NdjsonStream(self._infill_lines(call))

    async def _infill_lines(self, call: InfillCall) -> AsyncGenerator[bytes, None]:
        """Frames while the completer runs, then its outcome. Closing this cancels the completer."""
        loop = asyncio.get_running_loop()
        frames: asyncio.Queue[Frame | None] = asyncio.Queue()

        def on_frame(frame: Frame) -> None:  # may be called from the engine's thread
            loop.call_soon_threadsafe(frames.put_nowait, frame)

        with self._lifetime.infill():
            fill = asyncio.create_task(self._fill(call.request, on_frame if call.frames else None))
            self._fills.add(fill)
            fill.add_done_callback(self._fills.discard)
            fill.add_done_callback(lambda _: frames.put_nowait(None))
            try:
                while (frame := await frames.get()) is not None:
                    yield encode_reply(frame)
                yield encode_reply(fill.result())
            finally:
                fill.cancel()

    async def _fill(
        self, request: InfillRequest, on_frame: FrameListener | None
    ) -> InfillResult | CompletionError:
        try:
            completer = await self._host.completer()
            return await completer.complete(request, on_frame=on_frame)
        except asyncio.CancelledError:
            if not self._leaving.is_set():
                raise  # the client hung up
            return EngineUnavailableError("the engine is shutting down")
        except CompletionError as error:
            return error
        except Exception as error:
            # The text of a foreign exception may quote the request, so only its type goes out.
            logger.exception("An infill failed")
            kind = type(error).__name__
            return CompletionError(f"the engine failed on this request ({kind}); see its log")

    async def _lease(self, _: Request) -> Response:
        return NdjsonStream(self._lease_lines())

    async def _lease_lines(self) -> AsyncGenerator[bytes, None]:
        with self._lifetime.lease():
            while not self._leaving.is_set():
                yield encode_object({"alive": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), HEARTBEAT_S)
            yield encode_object({"leaving": True})


class Guard:
    """Lets through who knows the token, and no web page."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._authorization = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        await (self._refusal(scope) or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if "origin" in headers:
            return _refusal(403, "this engine does not talk to web pages")
        authorization = headers.get("authorization", "").encode("latin-1")
        if scope["path"] == "/health" and not authorization:
            return None
        if not hmac.compare_digest(authorization, self._authorization):
            return _refusal(401, "the engine's token is missing or wrong; set MEZZOTINT_TOKEN")
        return None


class NdjsonStream(Response):
    """Sends lines as they come, and closes their generator as soon as the client hangs up.

    Starlette's own streaming response notices that, under ASGI 2.4, only at the next line; the
    next line of an infill is its result.
    """

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        sending = asyncio.create_task(self._send_lines(send))
        hung_up = asyncio.create_task(_until_hung_up(receive))
        try:
            await asyncio.wait({sending, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, hung_up):
                task.cancel()
            await asyncio.gather(sending, hung_up, return_exceptions=True)
        if not sending.cancelled():
            sending.result()

    async def _send_lines(self, send: Send) -> None:
        start: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(self._lines) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve(
    listener: socket.socket,
    *,
    token: str,
    load: Callable[[], Completer],
    model: str,
    lifetime: Lifetime,
) -> CompletionError | None:
    """Serve on `listener` until `lifetime` ends or a signal comes. Takes `listener` over.

    `load` runs in a thread and gives the completer; `model` names it to people. Returns why the
    model could not be loaded, or None.
    """
    host = ModelHost(load, model=model)
    engine = EngineServer(host, lifetime, token)
    config = uvicorn.Config(
        engine.app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        http="h11",
        ws="none",
        # Longer than the clients keep theirs, lest one sends into a connection we just closed.
        timeout_keep_alive=60,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    server = uvicorn.Server(config)
    watch = asyncio.create_task(_watch(server, engine, host, lifetime))
    try:
        await server.serve(sockets=[listener])
    finally:
        watch.cancel()
        await host.close()
    return host.failure


async def _watch(
    server: uvicorn.Server, engine: EngineServer, host: ModelHost, lifetime: Lifetime
) -> None:
    """Stop `server` when it is time, and say farewell to its clients whatever stops it."""
    while not server.should_exit:  # a signal sets it, too
        reason = lifetime.reason_to_leave(failed=host.failure is not None)
        if reason is not None:
            logger.info("The engine leaves: %s", reason)
            server.should_exit = True
        await asyncio.sleep(0 if server.should_exit else _TICK_S)
    engine.leave()


async def _until_hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is longer than `MAX_BODY_BYTES`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _refusal(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": encode_error(InvalidRequestError(message))}, status)
