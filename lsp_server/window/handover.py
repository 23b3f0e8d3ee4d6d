"""From one model to the next without a pause: the old engine answers until the new one can."""

from __future__ import annotations

import asyncio

from lsp_server.ask.session import EngineSource
from model.api import (
    Completer,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
)


class Handover:
    """An `EngineSource` of two. Both models are in memory for a while, so that the old one should
    be a backbone of the catalogue. If the new one cannot be loaded, the old one stays."""

    def __init__(self, old: EngineSource, new: EngineSource) -> None:
        self._old: EngineSource | None = old
        self._new = new
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_done(self) -> bool:
        """Whether only the new engine is asked any more."""
        return self._old is None

    async def start(self) -> None:
        """See `EngineSource.start`: the new engine."""
        await self._new.start()

    async def completer(self, timeout: float) -> Completer:
        """See `EngineSource.completer`: of whichever engine can answer."""
        if self._old is None:
            return await self._new.completer(timeout)
        try:
            return await self._new.completer(0)
        except EngineUnavailableError:
            return _OldCompleter(self, await self._old.completer(timeout))

    async def finish(self) -> None:
        """Ask only the new engine from now on, and let go of the old one once what runs there is
        done. Idempotent."""
        old, self._old = self._old, None
        if old is not None:
            await self._idle.wait()
            await old.close()

    async def close(self) -> None:
        """Let go of both. Idempotent."""
        old, self._old = self._old, None
        if old is not None:
            await old.close()
        await self._new.close()

    async def run_in_old(
        self, completer: Completer, request: InfillRequest, on_frame: FrameListener | None
    ) -> InfillResult:
        """Complete with the old engine's `completer`, which stays for as long."""
        self._num_running += 1
        self._idle.clear()
        try:
            return await completer.complete(request, on_frame=on_frame)
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()


class _OldCompleter:
    """The old engine's completer, for a caller that may come back to it when it is gone."""

    def __init__(self, handover: Handover, completer: Completer) -> None:
        self._handover = handover
        self._completer = completer

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `Completer.complete`."""
        if self._handover.is_done:
            completer = await self._handover.completer(0)
            return await completer.complete(request, on_frame=on_frame)
        return await self._handover.run_in_old(self._completer, request, on_frame)

    async def close(self) -> None:
        """The engine is the handover's to close."""
