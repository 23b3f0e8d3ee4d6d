"""Infills on their way: what they say while the engine works, in the order it happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator

from model.api import (
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    Frame,
    FrameListener,
    InfillRequest,
    InfillResult,
)
from model.serving.lifetime import Lifetime
from model.serving.metrics import Metrics
from model.serving.model_host import ModelHost
from model.serving.watching import watched

MAX_FILLS = 64
"""Infills at once, those that wait for the model to be loaded included."""

LEAVING = "the engine is shutting down"

logger = logging.getLogger(__name__)

Outcome = InfillResult | CompletionError


class Fills:
    """Runs infills on the host's completer, as many at once as `max_fills`."""

    def __init__(
        self, host: ModelHost, lifetime: Lifetime, metrics: Metrics, *, max_fills: int = MAX_FILLS
    ) -> None:
        self._host = host
        self._lifetime = lifetime
        self._metrics = metrics
        self._max_fills = max_fills
        self._running: set[asyncio.Task[Outcome]] = set()
        self._is_leaving = False

    def leave(self) -> None:
        """End every infill with an error."""
        self._is_leaving = True
        for fill in self._running:
            fill.cancel()

    async def events(
        self, request: InfillRequest, *, frames: bool
    ) -> AsyncGenerator[Frame | Outcome, None]:
        """Frames, if wanted, while the completer runs, then its outcome: a result or an error.

        Closing this cancels the completer, which stops at its next step.
        """
        if self._is_leaving:
            yield EngineUnavailableError(LEAVING)
            return
        if len(self._running) >= self._max_fills:
            yield EngineOverloadedError(
                f"{len(self._running)} requests are running already; try again in a moment"
            )
            return

        def start(on_frame: FrameListener) -> asyncio.Task[Outcome]:
            fill = asyncio.create_task(self._fill(request, on_frame if frames else None))
            self._running.add(fill)
            fill.add_done_callback(self._running.discard)
            return fill

        with self._lifetime.infill():
            async with contextlib.aclosing(watched(start)) as events:
                async for event in events:
                    yield event

    async def _fill(self, request: InfillRequest, on_frame: FrameListener | None) -> Outcome:
        started = time.monotonic()
        self._metrics.running.inc()
        try:
            outcome = await self._outcome(request, on_frame)
        except asyncio.CancelledError:
            self._metrics.saw_fill(None, time.monotonic() - started)
            raise
        finally:
            self._metrics.running.dec()
        self._metrics.saw_fill(outcome, time.monotonic() - started)
        return outcome

    async def _outcome(self, request: InfillRequest, on_frame: FrameListener | None) -> Outcome:
        try:
            completer = await self._host.completer()
            return await completer.complete(request, on_frame=on_frame)
        except asyncio.CancelledError:
            if not self._is_leaving:
                raise  # the client hung up
            return EngineUnavailableError(LEAVING)
        except CompletionError as error:
            return error
        except Exception as error:
            # The text of a foreign exception may quote the request, so only its type goes out.
            logger.exception("An infill failed")
            kind = type(error).__name__
            return CompletionError(f"the engine failed on this request ({kind}); see its log")
