"""The choices of one answer: an infill each, and what can be told of them while they are denoised.

An infill decides its slots in any order. Two views of that can be sent: the whole state of the
text, or only what is decided without a gap from its left edge on. The latter never changes any
more, so a client may take it for text that is typed out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, TypeVar

from model.api import CompletionError, ContextSize, Frame, InfillRequest, InfillResult
from model.serving.fills import Fills

MASKED = "\u2591"
"""How a masked slot looks in the whole state of a text (a light shade; `░`)."""

FinishReason = Literal["stop", "length"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a choice has come."""

    index: int
    text: str
    """The whole text: what is decided from the left, without what might be the beginning of a
    stop. The last one has all of it."""
    state: str
    """The text as it stands, with `MASKED` for every slot that is open."""
    context: ContextSize
    tokens: int
    """Tokens generated so far."""
    finish_reason: FinishReason | None = None
    """Set in the last one."""


async def choice(
    fills: Fills, index: int, request: InfillRequest, stops: Sequence[str], *, watch: bool
) -> AsyncGenerator[Progress, None]:
    """The progress of one choice; without `watch` only the last.

    Ends, and with it the infill, as soon as one of `stops` is decided. Raises `CompletionError`.
    """
    async with contextlib.aclosing(fills.events(request, frames=watch or bool(stops))) as events:
        async for event in events:
            if isinstance(event, CompletionError):
                raise event
            if isinstance(event, InfillResult):
                yield _last(index, event, stops)
                return
            settled = event.text if event.text_stays else ""
            text, is_over = until_stop(settled, stops, is_whole=False)
            if watch or is_over:
                yield Progress(
                    index=index,
                    text=text,
                    state=text if is_over else whole_state(event),
                    context=event.context,
                    tokens=event.tokens,
                    finish_reason="stop" if is_over else None,
                )
            if is_over:
                return


def _last(index: int, result: InfillResult, stops: Sequence[str]) -> Progress:
    candidate = result.candidates[0]
    text, is_over = until_stop(candidate.text, stops, is_whole=True)
    return Progress(
        index=index,
        text=text,
        state=text,
        context=result.context,
        tokens=result.tokens,
        finish_reason="stop" if is_over or candidate.finished else "length",
    )


def whole_state(frame: Frame) -> str:
    """The text of a frame, earlier canvases included, with `MASKED` for every open slot. A draft
    that was verified has none: what was wrong in it is gone."""
    if frame.accepted is not None:
        return frame.text
    decided = list(takewhile(lambda slot: slot is not None, frame.slots))
    rest = frame.slots[len(decided) :]
    return frame.text + "".join(MASKED if slot is None else slot for slot in rest)


def until_stop(text: str, stops: Sequence[str], *, is_whole: bool) -> tuple[str, bool]:
    """`text` before the stop that is complete first, and whether there is one.

    Where there is none and the text is not `is_whole`, what a stop may yet begin with is left out.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return text[: min(found)[1]], True
    if is_whole:
        return text, False
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > size and stop.startswith(text[-size:]) for stop in stops):
            return text[:-size], False
    return text, False


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """What all of `sources` give, as it comes. Closing this, or an error in one, closes all."""
    news: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()

    async def drain(source: AsyncGenerator[T, None]) -> None:
        async with contextlib.aclosing(source):
            async for item in source:
                news.put_nowait(item)

    tasks = [asyncio.create_task(drain(source)) for source in sources]
    for task in tasks:
        task.add_done_callback(news.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await news.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
