"""Who may talk to the engine: whoever knows its token, and no web page.

A page that a browser shows can send requests to this machine. It cannot know the token; that is
what keeps it out. Two more doors are closed nevertheless: requests with an `Origin` are refused,
and so are those to a host name that is not ours, as they come from a page whose name was made to
point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model.serving.refusals import refused


class Guard:
    """Refuses what may not come in, before any of its body is read.

    `hosts`: names that requests may call this machine by, besides `localhost` and addresses; None:
    any, for a socket that no browser reaches.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str] | None) -> None:
        self._app = app
        self._authorization = f"Bearer {token}".encode()
        self._hosts = None if hosts is None else {"localhost", *map(str.lower, hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        await (self._refusal(scope) or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if "origin" in headers:
            return refused(path, 403, "this engine does not talk to web pages")
        host = headers.get("host", "")
        if self._hosts is not None and not self._is_ours(host):
            return refused(
                path, 403, f"this engine is not {host!r}; --allow-host adds a name it answers to"
            )
        authorization = headers.get("authorization", "").encode("latin-1")
        if path == "/health" and not authorization:
            return None
        if not hmac.compare_digest(authorization, self._authorization):
            return refused(path, 401, "the engine's token is missing or wrong; set MEZZOTINT_TOKEN")
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a `Host` header names this machine; an address cannot be made to point here."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return self._hosts is not None and name in self._hosts
        return True
