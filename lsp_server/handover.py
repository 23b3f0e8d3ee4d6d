"""From one model to the next without a pause: the old engine answers until the new one can."""

from __future__ import annotations

from lsp_server.session import EngineSource
from model.api import Completer, EngineUnavailableError


class Handover:
    """An `EngineSource` of two. Both models are in memory for a while; the old one should be
    small. If the new one cannot be loaded, the old one stays."""

    def __init__(self, old: EngineSource, new: EngineSource) -> None:
        self._old: EngineSource | None = old
        self._new = new

    @property
    def is_done(self) -> bool:
        """Whether only the new engine is left."""
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
            return await self._old.completer(timeout)

    async def finish(self) -> None:
        """Let go of the old engine. Idempotent."""
        old, self._old = self._old, None
        if old is not None:
            await old.close()

    async def close(self) -> None:
        """Let go of both. Idempotent."""
        await self.finish()
        await self._new.close()
