"""How long an engine is needed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator

FIRST_LEASE_S = 30.0
GRACE_S = 3.0
"""An editor that restarts its language server should find the model still loaded."""


class Lifetime:
    """Knows how long the engine is needed.

    `leased`: an editor started it, so it leaves when no lease is held for `GRACE_S`, or when none
    was taken within `FIRST_LEASE_S`. `idle_s`: it leaves after so many seconds without an infill
    or a new lease, whose holder is about to ask.
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
        self._last_use = self._started = clock()
        self._last_lease: float | None = None

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Somebody needs the engine while this context is open."""
        self._leases += 1
        self._last_use = self._clock()
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
            self._last_use = self._clock()

    def reason_to_leave(self, *, failed: bool) -> str | None:
        """Why the engine should leave now, or None.

        A `failed` one leaves as soon as nobody is left to be told, so that the next start
        tries again.
        """
        now = self._clock()
        if not self._infills and now - self._last_use >= self._idle_s:
            return "it had nothing to do"
        if not self.leased:
            return "the model could not be loaded" if failed else None
        if self._leases:
            return None
        if self._last_lease is None:
            return "nobody took a lease" if now - self._started >= FIRST_LEASE_S else None
        grace_s = 0.0 if failed else GRACE_S
        return "its last client has gone" if now - self._last_lease >= grace_s else None
