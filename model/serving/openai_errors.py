"""Errors as OpenAI's API words them: a status, and an envelope that its clients understand."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

from model.api import (
    CheckpointError,
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    InvalidRequestError,
    SupersededError,
)

RETRY_AFTER_S = 1

_STATUS: tuple[tuple[type[CompletionError], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_request_error"),
    (EngineOverloadedError, 429, "rate_limit_error"),
    (SupersededError, 409, "superseded_error"),
    (CheckpointError, 503, "server_error"),
    (EngineUnavailableError, 503, "server_error"),
    (CompletionError, 500, "server_error"),
)


class ApiError(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    @classmethod
    def of(cls, error: CompletionError) -> ApiError:
        """What a completer's error is to a client."""
        status, kind = next((s, k) for base, s, k in _STATUS if isinstance(error, base))
        return cls(str(error), status=status, kind=kind)

    @property
    def envelope(self) -> dict[str, Any]:
        """The body of the answer, or, once a stream has begun, its last event."""
        return {"error": self._error}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status == 429 else None
        return JSONResponse(self.envelope, self.status, headers)


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n\n"


SSE_END = b"data: [DONE]\n\n"
