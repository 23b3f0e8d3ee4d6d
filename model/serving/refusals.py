"""Requests that get no further than the door, refused in the words of the route's clients."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from model.api import InvalidRequestError
from model.serving.openai_errors import ApiError
from model.serving.protocol import encode_error

_KINDS = {401: "authentication_error", 403: "permission_error"}


def refused(path: str, status: int, message: str) -> Response:
    """OpenAI's envelope below `/v1`, else our own."""
    if not path.startswith("/v1/"):
        return JSONResponse({"error": encode_error(InvalidRequestError(message))}, status)
    kind = _KINDS.get(status, "invalid_request_error")
    return ApiError(message, status=status, kind=kind).response()
