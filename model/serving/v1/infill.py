"""`/v1/infill`: all that the engine can do, in its own words.

The body is an `InfillRequest` of `model.api`, field by field, with `model` and `stream` besides:
several holes (`between`), several `candidates`, a warm start (`typed`), any policy. The answer has
the candidates whole, with the probability of each token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Literal

from starlette.responses import Response

from model.api import CompletionError, Frame, InfillRequest, InfillResult, InvalidRequestError
from model.serving.fills import Fills, Outcome
from model.serving.protocol import ProtocolError, decode, decode_object
from model.serving.streaming import SSE, LineStream
from model.serving.v1.errors import SSE_END, ApiError, json_response, sse
from model.serving.v1.fields import Fields
from model.serving.v1.served_model import ServedModel

_FIELDS = frozenset(field.name for field in dataclasses.fields(InfillRequest))


async def infill(body: bytes, served: ServedModel, fills: Fills) -> Response:
    """Answer an infill. Raises `ApiError`."""
    request, stream = read_request(body, served)
    events = fills.events(request, frames=stream)
    head = {"id": f"infill-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    # An error that comes first of all still has a status of its own.
    first = await anext(events)
    if stream and not isinstance(first, CompletionError):
        return LineStream(_events(first, events, head), SSE)
    await events.aclose()
    if isinstance(first, CompletionError):
        raise ApiError.of(first)
    return json_response(head | _described(first))


def read_request(body: bytes, served: ServedModel) -> tuple[InfillRequest, bool]:
    """The request, and whether its frames are to be streamed. Raises `ApiError`."""
    try:
        given = decode_object(body)
        fields = Fields({name: given.pop(name) for name in ("model", "stream") if name in given})
        model, stream = fields.take("model", str, ""), fields.take("stream", bool, False)
        for name in given:
            if name not in _FIELDS:
                raise ApiError(f"there is no field {name}; leave it out", param=name)
        request = decode(InfillRequest, given, "body")
    except (ProtocolError, InvalidRequestError) as error:
        raise ApiError(str(error)) from None
    served.check(model)
    # Never the name of an editor's window, whose requests it would replace.
    return dataclasses.replace(request, client=f"http:{request.client}"), stream


async def _events(
    first: Frame | InfillResult,
    events: AsyncGenerator[Frame | Outcome, None],
    head: dict[str, Any],
) -> AsyncGenerator[bytes, None]:
    """A frame a step, then the result."""
    async with contextlib.aclosing(events):
        event: Frame | Outcome | None = first
        while event is not None:
            if isinstance(event, CompletionError):
                yield sse(ApiError.of(event).envelope)
                return
            yield sse(head | _described(event))
            event = await anext(events, None)
    yield SSE_END


def _described(event: Frame | InfillResult) -> dict[str, Any]:
    kind: Literal["infill.frame", "infill"]
    kind = "infill.frame" if isinstance(event, Frame) else "infill"
    return {"object": kind} | dataclasses.asdict(event)
