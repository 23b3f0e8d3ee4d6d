"""Changes the model under running requests: none is dropped, and a failed load changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from model.api import (
    Completer,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
)


@dataclass(slots=True)
class _Tenant:
    """A completer and how many requests it works on."""

    completer: Completer
    num_requests: int = 0
    is_leaving: bool = False


class SwappableCompleter:
    """A `model.api.Completer` around one that can be exchanged. Lives on one event loop."""

    def __init__(self, completer: Completer) -> None:
        """Takes `completer` over: closes it with this one, or after the swap that replaces it."""
        self._tenant: _Tenant | None = _Tenant(completer)
        self._swapping = asyncio.Lock()

    @property
    def current(self) -> Completer:
        """The completer that new requests go to. Raises `EngineUnavailableError` once closed."""
        return self._occupied().completer

    @property
    def problems(self) -> list[str]:
        """Those of the current completer, if it tells any."""
        return getattr(self.current, "problems", [])

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `model.api.Completer.complete`. A request stays with the model that it began with."""
        tenant = self._occupied()
        tenant.num_requests += 1
        try:
            return await tenant.completer.complete(request, on_frame=on_frame)
        finally:
            tenant.num_requests -= 1
            await self._close_if_done(tenant)

    async def swap(self, load: Callable[[], Completer]) -> None:
        """Have `load` make the next completer in a thread, while the current one serves.

        New requests then go to it; the old one is closed after its last request. Whatever `load`
        raises, a `CheckpointError` say, comes out here, and the old one stays. Both are in memory
        for a while. Swaps happen one after the other.
        """
        async with self._swapping:
            self._occupied()
            completer = await asyncio.to_thread(load)
            old, self._tenant = self._tenant, _Tenant(completer)
            if old is None:  # closed in the meantime
                self._tenant = None
                await completer.close()
                raise EngineUnavailableError("the engine was closed while a model was loading")
            await self._leave(old)

    async def close(self) -> None:
        """See `model.api.Completer.close`: unfinished requests fail. Idempotent."""
        tenant, self._tenant = self._tenant, None
        if tenant is not None:
            await tenant.completer.close()

    def _occupied(self) -> _Tenant:
        if self._tenant is None:
            raise EngineUnavailableError("the engine is closed; start it again")
        return self._tenant

    async def _leave(self, tenant: _Tenant) -> None:
        tenant.is_leaving = True
        await self._close_if_done(tenant)

    async def _close_if_done(self, tenant: _Tenant) -> None:
        if tenant.is_leaving and not tenant.num_requests:
            await tenant.completer.close()
