"""The engine's HTTP side.

    GET  /health   how the engine is; needs no token, but refuses a wrong one
    POST /infill   one infill of our own client's; `protocol` has the body and the answer
    GET  /lease    a line every few seconds; an engine that an editor started lives while somebody
                   reads one, and the kernel hangs up for readers that were killed
    GET  /metrics  counters for Prometheus
    /v1/…          for everybody else: the shapes of OpenAI's and Mercury's APIs (docs/serving.md);
                   `v1` has one file for each

Either way a request goes on to `fills`, and from there to `completer`, which has the engine run it.
Hanging up cancels what was asked for. `guard` says who is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model.api import Completer, CompletionError, EngineUnavailableError, InvalidRequestError
from model.serving.fills import LEAVING, Fills
from model.serving.guard import Guard
from model.serving.lifetime import Lifetime
from model.serving.metrics import Metered, Metrics
from model.serving.model_host import ModelHost
from model.serving.protocol import (
    HEARTBEAT_S,
    InfillCall,
    ProtocolError,
    decode_call,
    encode_error,
    encode_object,
    encode_reply,
)
from model.serving.refusals import refused
from model.serving.streaming import NDJSON, LineStream, WhileConnected
from model.serving.v1.chat import APPLY, CHAT, EDIT, chat
from model.serving.v1.completions import COMPLETION_DEFAULTS, FIM_DEFAULTS, complete
from model.serving.v1.errors import ApiError, json_response
from model.serving.v1.fields import Fields, checked
from model.serving.v1.infill import infill
from model.serving.v1.served_model import ServedModel

MAX_BODY_BYTES = 4 * 2**20

_TICK_S = 0.2
_SHUTDOWN_S = 2

logger = logging.getLogger(__name__)

Answer = Callable[[bytes, ServedModel, Fills], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who is let in, and how they are spoken to."""

    token: str
    hosts: Sequence[str] | None = ()
    """Names, besides `localhost`, that requests may call this machine by; None: any."""
    certificate: Path | None = None
    """PEM file of the certificate chain; None: plain HTTP."""
    key: Path | None = None
    """PEM file of its private key, where it is not in the same file."""


class EngineServer:
    """The routes, and what they share."""

    def __init__(
        self, host: ModelHost, lifetime: Lifetime, access: Access, served: ServedModel
    ) -> None:
        self._host = host
        self._lifetime = lifetime
        self._served = served
        self._leaving = asyncio.Event()
        metrics = Metrics()
        self._fills = Fills(host, lifetime, metrics)
        routes = [
            Route("/health", self._health),
            Route("/infill", self._infill, methods=["POST"]),
            Route("/lease", self._lease),
            Route("/metrics", metrics.respond),
            Route("/v1/models", self._models),
            Route("/v1/models/load", self._change_model, methods=["POST"]),
            Route("/v1/models/{name:path}", self._model),
            *(Route(path, self._post(f), methods=["POST"]) for path, f in _GENERATING.items()),
        ]
        paths = frozenset(route.path for route in routes)
        self.app = Starlette(
            routes=routes,
            middleware=[
                Middleware(Metered, metrics=metrics, routes=paths),
                Middleware(Guard, token=access.token, hosts=access.hosts),
            ],
            exception_handlers={
                HTTPException: _no_such_route,
                ApiError: _api_error,
                ClientDisconnect: _hung_up,
                Exception: _bug,
            },
        )

    def leave(self) -> None:
        """End every lease with a farewell, and every infill with an error."""
        self._leaving.set()
        self._fills.leave()

    async def _health(self, _: Request) -> Response:
        if self._leaving.is_set():
            # Whoever looks for an engine must not settle for one that is about to be gone.
            error = encode_error(EngineUnavailableError(LEAVING))
            return JSONResponse({"error": error}, 503)
        # Who hears here that the load failed need not come for a lease to be told again.
        with self._lifetime.lease() if self._host.failure else contextlib.nullcontext():
            return JSONResponse(dataclasses.asdict(self._host.health()))

    async def _models(self, _: Request) -> Response:
        return json_response(self._served.listing())

    async def _model(self, request: Request) -> Response:
        self._served.check(request.path_params["name"])
        return json_response(self._served.describe())

    async def _change_model(self, request: Request) -> Response:
        """Load another model while this one serves; the answer comes when that is done."""
        body = await _read_body(request)
        if body is None:
            return _too_large(request)
        fields = Fields.of_body(body)
        model = checked(fields.require("model"), str, "model")
        fields.finish()
        try:
            await self._host.change(model)
        except CompletionError as error:
            raise ApiError.of(error) from error
        self._served = ServedModel.of(model)
        return json_response(self._served.describe())

    async def _loaded_model(self) -> ServedModel:
        """The served model; where its checkpoint lies is known of a hub id once it is loaded."""
        if self._served.checkpoint is None:
            with contextlib.suppress(CompletionError):  # the answer will say it
                await self._host.completer()
            self._served = dataclasses.replace(self._served, checkpoint=self._host.checkpoint)
        return self._served

    def _post(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a route that generates text: one that ends when its client hangs up."""

        async def endpoint(request: Request) -> Response:
            body = await _read_body(request)
            if body is None:
                return _too_large(request)

            async def answered() -> Response:
                try:
                    return await answer(body, await self._loaded_model(), self._fills)
                except ApiError as error:
                    return error.response()

            return WhileConnected(answered)

        return endpoint

    async def _infill(self, request: Request) -> Response:
        body = await _read_body(request)
        if body is None:
            return _too_large(request)
        try:
            call = decode_call(body)
        except (ProtocolError, InvalidRequestError) as error:
            return refused(request.url.path, 400, str(error))
        return _lines(self._infill_lines(call))

    async def _infill_lines(self, call: InfillCall) -> AsyncGenerator[bytes, None]:
        events = self._fills.events(call.request, frames=call.frames)
        async with contextlib.aclosing(events):
            async for event in events:
                yield encode_reply(event)

    async def _lease(self, _: Request) -> Response:
        return _lines(self._lease_lines())

    async def _lease_lines(self) -> AsyncGenerator[bytes, None]:
        with self._lifetime.lease():
            while not self._leaving.is_set():
                yield encode_object({"alive": True})
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), HEARTBEAT_S)
            yield encode_object({"leaving": True})


_GENERATING: dict[str, Answer] = {
    "/v1/completions": partial(complete, defaults=COMPLETION_DEFAULTS),
    "/v1/fim/completions": partial(complete, defaults=FIM_DEFAULTS),
    "/v1/chat/completions": partial(chat, route=CHAT),
    "/v1/edit/completions": partial(chat, route=EDIT),
    "/v1/apply/completions": partial(chat, route=APPLY),
    "/v1/infill": infill,
}
"""Routes that take a JSON object and generate text."""


async def serve(
    listener: socket.socket,
    *,
    access: Access,
    load: Callable[[str], Completer],
    model: str,
    lifetime: Lifetime,
) -> CompletionError | None:
    """Serve on `listener` until `lifetime` ends or a signal comes. Takes `listener` over.

    `load` runs in a thread and makes the completer of a model, `model` at first: a checkpoint's
    directory or hub id. Returns why that could not be loaded, or None.
    """
    host = ModelHost(load, model=model)
    engine = EngineServer(host, lifetime, access, ServedModel.of(model))
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
        ssl_certfile=access.certificate,
        ssl_keyfile=access.key,
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


async def _read_body(request: Request) -> bytes | None:
    """The body, or None as soon as it is longer than `MAX_BODY_BYTES`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _too_large(request: Request) -> Response:
    message = f"the request is larger than {MAX_BODY_BYTES >> 20} MiB"
    return refused(request.url.path, 413, message)


def _lines(lines: AsyncGenerator[bytes, None]) -> Response:
    async def stream() -> Response:
        return LineStream(lines, NDJSON)

    return WhileConnected(stream)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    message = f"there is no {path}" if status == 404 else f"{path}: {error.detail}"
    return refused(path, status, message)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _hung_up(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again afterwards, so it is logged. Its text may quote the request.
    message = f"the engine failed on this request ({type(error).__name__}); see its log"
    return refused(request.url.path, 500, message)
