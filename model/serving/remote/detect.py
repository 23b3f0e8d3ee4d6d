"""What an address speaks, found out without showing it the key."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from model.api import EngineAddress, EngineUnavailableError, InvalidRequestError
from model.serving.remote.dialect import base_url
from model.serving.remote.link import http_client

Kind = Literal["mezzotint", "mercury", "llama.cpp", "openai"]

_TIMEOUT_S = 5.0
_MERCURY_DOMAIN = "inceptionlabs.ai"


async def kind_of(address: EngineAddress) -> Kind:
    """The kind of the engine at `address`.

    Raises `EngineUnavailableError` when nobody answers, and `InvalidRequestError` when what
    answers could be anything: source code is sent to nothing that is guessed at.
    """
    if address.url.startswith("unix:"):
        return "mezzotint"
    host = urlsplit(address.url).hostname or ""
    if f".{host}".endswith(f".{_MERCURY_DOMAIN}"):
        return "mercury"
    name = urlsplit(address.url).netloc.rpartition("@")[2]
    try:
        async with http_client(base_url(address.url), silence_s=_TIMEOUT_S) as http:
            found = _by_health(await http.get("/health"))
            if found is None:
                found = _by_models(await http.get("/v1/models"))
    except httpx2.HTTPError as error:
        raise EngineUnavailableError(
            f"the engine at {name} does not answer ({str(error) or type(error).__name__})"
        ) from error
    if found is None:
        raise InvalidRequestError(
            f"what answers at {name} does not tell what kind of engine it is; set "
            "mezzotint.engine.kind"
        )
    return found


def _by_health(response: httpx2.Response) -> Kind | None:
    """Our own engine tells a state, and llama.cpp its name, also while they load."""
    match _json(response):
        case {"state": str(), "message": str()}:
            return "mezzotint"
        case {"status": "ok"} | {"error": {"code": 503}}:
            return "llama.cpp" if response.headers.get("server") == "llama.cpp" else None
        case _:
            return None


def _by_models(response: httpx2.Response) -> Kind | None:
    """SGLang, vLLM and their like list models, or want a key before they do."""
    match _json(response):
        case {"object": "list", "data": [*_]} if response.is_success:
            return "openai"
        case {"error": _} if response.status_code == 401:
            return "openai"
        case _:
            return None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
