"""How an answer is written down; errors as OpenAI's API words them: a status and an envelope."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

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

    def response(self) -> Response:
        """The answer."""
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status == 429 else None
        return json_response(self.envelope, self.status, headers)


def json_response(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A JSON object as an answer."""
    return Response(_to_json(body), status, headers, "application/json")


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + _to_json(event) + b"\n\n"


def _to_json(body: dict[str, Any]) -> bytes:
    # Escaped, for half of a character, which JSON can hold and a client may send, has no UTF-8.
    return json.dumps(body, separators=(",", ":")).encode("ascii")


SSE_END = b"data: [DONE]\n\n"
