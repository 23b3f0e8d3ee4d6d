"""Frames from the engine's thread, and then an outcome, in the order they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from model.api import Frame, FrameListener

T = TypeVar("T")


async def watched(
    start: Callable[[FrameListener], asyncio.Task[T]],
) -> AsyncGenerator[Frame | T, None]:
    """The frames that the task which `start` makes tells its listener, then the task's result.

    The listener may be called from any thread. Closing this cancels the task.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[Frame | None] = asyncio.Queue()

    def listen(frame: Frame) -> None:
        loop.call_soon_threadsafe(news.put_nowait, frame)

    task = start(listen)
    task.add_done_callback(lambda _: news.put_nowait(None))
    try:
        while (frame := await news.get()) is not None:
            yield frame
        yield task.result()
    finally:
        task.cancel()
