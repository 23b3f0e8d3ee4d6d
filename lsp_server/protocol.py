"""The rules of the protocol that pygls does not keep: every request is answered, and every answer
that the server waits for ends its waiting, however the client puts it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import attrs
from cattrs import Converter
from lsprotocol import types
from pygls.exceptions import (
    JsonRpcException,
    JsonRpcInvalidRequest,
    JsonRpcServerNotInitialized,
)
from pygls.protocol import LanguageServerProtocol, default_converter, lsp_method

from lsp_server.ask.documents import LspWorkspace

_OF_INITIALIZE = (
    types.TraceValue, types.MarkupKind, types.ResourceOperationKind, types.FailureHandlingKind,
    types.CompletionItemKind, types.CompletionItemTag, types.InsertTextMode, types.SymbolKind,
    types.SymbolTag, types.DiagnosticTag, types.PrepareSupportDefaultBehavior, types.TokenFormat,
    types.CodeActionTag,
)  # fmt: skip
"""Enumerations by which a client says what it can do. A word more is no harm there, while in a
request it would be a question that nobody understands."""


class Protocol(LanguageServerProtocol):
    """pygls' protocol with our documents."""

    def __init__(self, *made_of: Any) -> None:
        super().__init__(*made_of)
        self._cancelled_with: dict[Any, asyncio.Task[Any]] = {}

    @property
    def exit_code(self) -> int:
        """What the process must exit with: 0 after a `shutdown` request, else 1."""
        return 0 if self._shutdown else 1

    def adopt_lsp_lines(self) -> None:
        """Replace the workspace that `initialize` has just made with one of `LspDocument`s."""
        made = self.workspace
        self._workspace = LspWorkspace(
            made.root_uri,
            workspace_folders=list(made.folders.values()),
            position_encoding=made.position_encoding,
        )

    @contextmanager
    def cancelling(self, task: asyncio.Task[Any]) -> Generator[None]:
        """Cancel `task` when the client cancels the request at hand. pygls leaves the handler of
        a command running."""
        message = self.msg_id
        self._cancelled_with[message] = task
        try:
            yield
        finally:
            del self._cancelled_with[message]

    def _handle_cancel_notification(self, msg_id: Any) -> None:
        super()._handle_cancel_notification(msg_id)
        if msg_id in self._cancelled_with:
            self._cancelled_with[msg_id].cancel()

    def structure_message(self, data: dict[str, Any]) -> Any:
        """Parse one message. Of one that cannot be read, those hear who wait for it: the client,
        or whoever asked the client."""
        if "jsonrpc" in data:
            self._fill_in(data)
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            if "id" in data and "method" in data:
                self._send_response(data["id"], error=error.to_response_error())
            elif "id" in data:
                self._handle_response(data["id"], error=error.to_response_error())
            raise

    def _fill_in(self, data: dict[str, Any]) -> None:
        """Put into a message what clients leave out where it says nothing."""
        if "method" not in data:
            if data.get("error") is None:
                data.pop("error", None)
                data.setdefault("result", None)
        elif data.get("params") is None:
            made = self.get_message_type(data["method"])
            is_needed = (
                made is not None and attrs.fields_dict(made)["params"].default is attrs.NOTHING
            )
            data["params"] = {} if is_needed else None

    def handle_message(self, message: Any) -> None:
        """Handle one message, if it is its time: between `initialize` and `shutdown`."""
        method = getattr(message, "method", None)
        refusal: JsonRpcException | None = None
        if self._shutdown:
            refusal = JsonRpcInvalidRequest("the server has been shut down")
        elif self._workspace is None and method != types.INITIALIZE:
            refusal = JsonRpcServerNotInitialized("the server has not been initialized")
        elif self._workspace is not None and method == types.INITIALIZE:
            refusal = JsonRpcInvalidRequest("the server has been initialized before")
        if refusal is None or method == types.EXIT:
            super().handle_message(message)
        elif method is not None and hasattr(message, "id"):
            self._send_response(message.id, error=refusal.to_response_error())

    @lsp_method(types.SHUTDOWN)
    def lsp_shutdown(self, *args: Any) -> Generator[Any, Any, None]:
        """Stop what runs, what waits for the client included, and let the handler clean up. pygls
        stumbles over what is stopped, and goes on with other requests until then."""
        self._shutdown = True
        for message, future in list(self._request_futures.items()):
            if message != self.msg_id:
                future.cancel()
        yield cast("Any", self.fm).features[types.SHUTDOWN], args, None


def make_converter() -> Converter:
    """pygls' converter of messages, for clients that say null or nothing where they leave out a
    member."""
    converter = default_converter()
    either = types.TextDocumentContentChangePartial | types.TextDocumentContentChangeWholeDocument

    def change(raw: Any, _: Any) -> Any:
        partial = raw.get("range") is not None
        made = (
            types.TextDocumentContentChangePartial
            if partial
            else types.TextDocumentContentChangeWholeDocument
        )
        return converter.structure(raw, made)

    converter.register_structure_hook(either, change)
    applied = converter.get_structure_hook(types.ApplyWorkspaceEditResult)

    def application(raw: Any, made: Any) -> Any:
        # A client that does not make an edit says so; one that says nothing has made it.
        return applied({"applied": True} | (raw or {}), made)

    converter.register_structure_hook(types.ApplyWorkspaceEditResult, application)

    for made in _OF_INITIALIZE:
        converter.register_structure_hook(made, _known_or_raw)
    return converter


def _known_or_raw(raw: Any, enumeration: Any) -> Any:
    """A value of an enumeration. One that nobody knows is of a newer protocol, or a mistake: no
    reason to refuse the message."""
    try:
        return enumeration(raw)
    except ValueError:
        return raw
