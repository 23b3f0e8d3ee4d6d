"""What a person is told about the server: one status, sent whenever it changes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from lsp_server.ask.completion import Reason
from lsp_server.engine_link.engine_process import EngineState
from model.api import InfillResult

State = Literal["loading", "ready", "busy", "warning", "error", "inactive"]


class StatusBoard:
    """Makes one status of the engine's state, what is under way, and the last answer."""

    def __init__(self, send: Callable[[dict[str, object]], None]) -> None:
        self._send = send
        self._sent: dict[str, object] = {}
        self._engine: EngineState | None = None
        self._model: Reason | None = None
        self._reason: Reason | None = None
        self._result: InfillResult | None = None
        self._num_running = 0

    @property
    def engine(self) -> EngineState | None:
        """The engine's state; None while there is none."""
        return self._engine

    @property
    def model(self) -> Reason | None:
        """What is to be known of a model that is wanted and not here."""
        return self._model

    @property
    def is_loading(self) -> bool:
        """Whether an engine is on its way."""
        return self._engine is not None and self._engine.kind in ("starting", "loading")

    def engine_is(self, state: EngineState | None) -> None:
        """The engine's state is now this."""
        self._engine = state
        if state is None:
            return
        if state.kind == "ready" and self._reason is not None and self._reason.kind == "warning":
            self._reason = None
        self._update()

    def model_is(self, reason: Reason | None) -> None:
        """Why the model that the settings ask for does not serve, or how far it is; None when it
        does."""
        self._model = reason
        self._update()

    def answered(self, reason: Reason | None, result: InfillResult | None = None) -> None:
        """The last request got something (`reason` None) or nothing, at this price."""
        self._reason = reason
        self._result = result or self._result
        self._update()

    @contextmanager
    def working(self) -> Generator[None]:
        """A request is under way as long as this is open."""
        self._num_running += 1
        self._update()
        try:
            yield
        finally:
            self._num_running -= 1
            self._update()

    def _update(self) -> None:
        status = self._status()
        if status != self._sent:
            self._sent = status
            self._send(status)

    def _status(self) -> dict[str, object]:
        engine, reason, result = self._engine, self._reason, self._result
        kind, message = "normal", "ready"
        if self._model is not None:
            kind, message = self._model.kind, self._model.message
        if engine is not None and engine.kind == "failed":
            kind, message = "error", engine.message
        elif reason is not None and reason.kind == "inactive":
            kind, message = reason.kind, reason.message
        elif engine is not None and self.is_loading:
            kind, message = "normal", engine.message
        elif reason is not None and (self._model is None or self._outweighs_model(reason)):
            kind, message = reason.kind, reason.message
        return {
            "state": self._state(kind),
            "kind": kind,
            "busy": self.is_loading or self._is_fetching or self._num_running > 0,
            "message": message,
            "reason": reason.message if reason else None,
            "ms": round(result.ms, 1) if result else None,
            "forwards": result.forwards if result else None,
        }

    @property
    def _is_fetching(self) -> bool:
        """Whether the first model is on its way to this machine."""
        return self._engine is None and self._model is not None and self._model.kind == "normal"

    def _outweighs_model(self, reason: Reason) -> bool:
        """Whether the last answer's reason is of more interest than what is told of the model.

        Where no engine is, the reason was the model's state, as it stood then.
        """
        return self._engine is not None and reason.kind != "normal"

    def _state(self, kind: str) -> State:
        if kind in ("error", "inactive"):
            return "error" if kind == "error" else "inactive"
        if self.is_loading or self._is_fetching:
            return "loading"
        if self._num_running:
            return "busy"
        return "warning" if kind == "warning" else "ready"
