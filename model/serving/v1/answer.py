"""How choices become an answer: one JSON object, or a stream of server-sent events."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from starlette.responses import Response

from model.api import MOST_TOKENS, CompletionError, InfillRequest
from model.serving.fills import Fills
from model.serving.streaming import SSE, LineStream
from model.serving.v1.choices import FinishReason, Progress, choice, merged
from model.serving.v1.errors import SSE_END, ApiError, json_response, sse
from model.serving.v1.fields import Options


class Shape(Protocol):
    """What distinguishes the answers of text completion and chat."""

    @property
    def id_prefix(self) -> str:
        """What ids begin with."""
        ...

    @property
    def object(self) -> str:
        """The kind of a whole answer."""
        ...

    @property
    def chunk_object(self) -> str:
        """The kind of an event."""
        ...

    def choice(self, text: str) -> dict[str, Any]:
        """The text of a finished choice, in its place."""
        ...

    def chunk(self, text: str, *, is_first: bool) -> dict[str, Any]:
        """A piece of a choice's text, in its place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request to generate text, read and checked."""

    model: str
    """The model's name, for the answer."""
    requests: Sequence[InfillRequest]
    """One a choice, those of the same prompt one after the other."""
    options: Options
    line_end: str = "\n"
    """How lines end where the answer goes."""


def requests_for(request: InfillRequest, options: Options) -> list[InfillRequest]:
    """`request`, once a choice, generated as `options` say."""
    return [
        replace(
            request,
            # Programs say themselves what is to be read.
            prefix_tokens=MOST_TOKENS,
            suffix_tokens=MOST_TOKENS,
            max_new_tokens=options.max_tokens,
            temperature=options.temperature,
            drawn=options.temperature > 0,
            top_p=options.top_p,
            seed=options.seed + index,
            # Users take turns with each other, and with the editors' windows.
            client=f"http:{options.user}",
        )
        for index in range(options.n)
    ]


async def answer(fills: Fills, call: Call, shape: Shape) -> Response:
    """Generate and answer. Cancelling stops the generation.

    Raises `ApiError` for what goes wrong before there is anything to send.
    """
    options = call.options
    news = merged(
        [
            choice(fills, index, request, options.stop, watch=options.stream)
            for index, request in enumerate(call.requests)
        ]
    )
    head = _head(call, shape, shape.chunk_object if options.stream else shape.object)
    try:
        if options.stream:
            # An error that comes first of all still has a status of its own.
            first = await anext(news)
            return LineStream(_events(first, news, call, shape, head), SSE)
        async with contextlib.aclosing(news):
            last = {item.index: item async for item in news}
    except CompletionError as error:
        raise ApiError.of(error) from error
    choices = [
        _with_ends(shape.choice(_text(call, last[i].text)), i, last[i].finish_reason)
        for i in sorted(last)
    ]
    return json_response(head | {"choices": choices, "usage": _usage(call, last)})


async def _events(
    first: Progress,
    news: AsyncGenerator[Progress, None],
    call: Call,
    shape: Shape,
    head: dict[str, Any],
) -> AsyncGenerator[bytes, None]:
    """The events of a stream; `first` is the news that has been waited for already."""
    last: dict[int, Progress] = {}
    usage = {"usage": None} if call.options.include_usage else {}
    async with contextlib.aclosing(news):
        try:
            item: Progress | None = first
            while item is not None:
                delta = _delta(call, shape, last.get(item.index), item)
                last[item.index] = item
                if delta is not None:
                    yield sse(head | {"choices": [delta]} | usage)
                item = await anext(news, None)
        except CompletionError as error:
            yield sse(ApiError.of(error).envelope)
            return
    if call.options.include_usage:
        yield sse(head | {"choices": [], "usage": _usage(call, last)})
    yield SSE_END


def _delta(
    call: Call, shape: Shape, before: Progress | None, now: Progress
) -> dict[str, Any] | None:
    """What is to be told of a choice; None: nothing."""
    if call.options.diffusing:
        text = now.state
    else:
        sent = before.text if before else ""
        if not now.text.startswith(sent):  # what was sent cannot be taken back
            raise CompletionError("the engine changed text that had been decided; report this")
        text = now.text[len(sent) :]
        if before is not None and not text and now.finish_reason is None:
            return None
    chunk = shape.chunk(_text(call, text), is_first=before is None)
    return _with_ends(chunk, now.index, now.finish_reason)


def _text(call: Call, text: str) -> str:
    return text if call.line_end == "\n" else text.replace("\n", call.line_end)


def _with_ends(
    choice: dict[str, Any], index: int, finish_reason: FinishReason | None
) -> dict[str, Any]:
    return {"index": index} | choice | {"logprobs": None, "finish_reason": finish_reason}


def _head(call: Call, shape: Shape, kind: str) -> dict[str, Any]:
    return {
        "id": f"{shape.id_prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": call.model,
    }


def _usage(call: Call, last: dict[int, Progress]) -> dict[str, int]:
    """Tokens read and written; the prompt that several choices share counts once."""
    prompts = [last[index].context for index in range(0, len(call.requests), call.options.n)]
    read = sum(context.tokens for context in prompts)
    written = sum(item.tokens for item in last.values())
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "dropped_tokens": sum(context.dropped for context in prompts),
    }
