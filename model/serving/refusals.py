"""Requests that are not answered, refused in the words of the route's clients."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from model.api import CompletionError, InvalidRequestError
from model.serving.protocol import encode_error
from model.serving.v1.errors import ApiError

_KINDS = {401: "authentication_error", 403: "permission_error", 500: "server_error"}


def refused(path: str, status: int, message: str) -> Response:
    """OpenAI's envelope below `/v1`, else our own."""
    if not path.startswith("/v1/"):
        error = InvalidRequestError(message) if status < 500 else CompletionError(message)
        return JSONResponse({"error": encode_error(error)}, status)
    kind = _KINDS.get(status, "invalid_request_error")
    return ApiError(message, status=status, kind=kind).response()
