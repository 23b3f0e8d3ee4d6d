"""The one completer of an engine process: loads it in a thread, and has everybody wait for it.

Another model may take its place while it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from model.api import Completer, CompletionError, EngineHealth
from model.serving.swap import SwappableCompleter

logger = logging.getLogger(__name__)


class ModelHost:
    """Loads the completer in a thread, and has everybody who asks for it wait until then."""

    def __init__(self, load: Callable[[str], Completer], *, model: str) -> None:
        """`load` makes the completer of a model; it is called in a thread."""
        self._load = load
        self._model = model
        self._loaded: asyncio.Future[SwappableCompleter] = (
            asyncio.get_running_loop().create_future()
        )
        # A daemon, so that an engine nobody needs any more leaves in the middle of a long load.
        threading.Thread(target=self._run, name="model-loader", daemon=True).start()

    def _run(self) -> None:
        started = time.monotonic()
        loop = self._loaded.get_loop()
        completer: Completer | None = None
        failure = CompletionError("")
        try:
            completer = self._load(self._model)
            logger.info("Loaded %s in %.1f s", self._model, time.monotonic() - started)
        except CompletionError as error:
            failure = error
            logger.error("Cannot load %s: %s", self._model, error)
        except Exception as error:
            failure = CompletionError(f"loading {self._model} failed: {error!r}")
            logger.exception("Cannot load %s", self._model)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the engine has left
            loop.call_soon_threadsafe(self._settle, completer, failure)

    def _settle(self, completer: Completer | None, failure: CompletionError) -> None:
        if completer is not None:
            self._loaded.set_result(SwappableCompleter(completer))
            return
        self._loaded.set_exception(failure)
        self._loaded.exception()  # nobody may ever wait for it; that is no mistake

    @property
    def failure(self) -> CompletionError | None:
        """Why the model could not be loaded."""
        error = self._loaded.exception() if self._loaded.done() else None
        return error if isinstance(error, CompletionError) else None

    def health(self) -> EngineHealth:
        """What `/health` says."""
        if not self._loaded.done():
            return EngineHealth(
                state="loading", message=f"loading {self._model}", model=self._model
            )
        if self.failure is not None:
            return EngineHealth(state="failed", message=str(self.failure), model=self._model)
        message = "; ".join([f"serving {self._model}", *self._loaded.result().problems])
        return EngineHealth(state="ready", message=message, model=self._model)

    async def completer(self) -> Completer:
        """The completer, once it is loaded.

        Raises the `CompletionError` that its loading ended in.
        """
        return await asyncio.shield(self._loaded)

    @property
    def checkpoint(self) -> Path | None:
        """Where the loaded checkpoint lies, if it lies on this machine."""
        if not self._loaded.done() or self.failure is not None:
            return None
        return getattr(self._loaded.result().current, "path", None)

    async def change(self, model: str) -> None:
        """Load another model while this one serves, and serve it from then on.

        Requests stay with the model that they began with. Raises the `CompletionError` of a load
        that failed; this one then goes on serving.
        """
        serving = await asyncio.shield(self._loaded)
        await serving.swap(lambda: self._load(model))
        self._model = model
        logger.info("Serving %s", model)

    async def close(self) -> None:
        """Close the completer if there is one."""
        if self._loaded.done() and self.failure is None:
            await self._loaded.result().close()
