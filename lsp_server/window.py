"""What the server wants of the editor's window: an answer, and progress that can be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer

_PROGRESS_TIMEOUT_S = 5.0

Report = Callable[[str, int], None]
"""Tells how far something is: a few words, and per cent."""


class CannotAskError(Exception):
    """The client does not ask its user anything."""


async def ask(server: LanguageServer, question: str, *answers: str) -> str | None:
    """The answer that the user chose; None where they chose none. Waits for as long as they take.

    Raises `CannotAskError`.
    """
    params = types.ShowMessageRequestParams(
        types.MessageType.Info, question, [types.MessageActionItem(answer) for answer in answers]
    )
    asking = asyncio.ensure_future(server.window_show_message_request_async(params))
    try:
        # The answer to a question that is of no interest any more has to find its future alive.
        chosen = await asyncio.shield(asking)
    except JsonRpcException as error:
        raise CannotAskError(error.message) from error
    return None if chosen is None else chosen.title


async def begin_progress(
    server: LanguageServer, title: str, cancel: Callable[[], object]
) -> str | None:
    """Show progress in which the user can call `cancel`: its token, or None if the client can't."""
    if not get_capability(server.client_capabilities, "window.work_done_progress"):
        return None
    token = f"mezzotint-{uuid.uuid4().hex}"
    params = types.WorkDoneProgressCreateParams(token)
    try:
        await asyncio.wait_for(
            server.window_work_done_progress_create_async(params), _PROGRESS_TIMEOUT_S
        )
    except (JsonRpcException, asyncio.TimeoutError):
        return None
    begin = types.WorkDoneProgressBegin(f"Mezzotint: {title}", cancellable=True, percentage=0)
    server.work_done_progress.begin(token, begin)

    def on_cancelled(_: object) -> None:
        cancel()

    _tokens(server)[token].add_done_callback(on_cancelled)
    return token


def report_progress(server: LanguageServer, token: str, message: str, percentage: int) -> None:
    """Tell how far it is."""
    report = types.WorkDoneProgressReport(message=message, percentage=percentage)
    server.work_done_progress.report(token, report)


def end_progress(server: LanguageServer, token: str) -> None:
    """Take the progress away; nothing is cancelled by it."""
    _tokens(server).pop(token, None)
    server.work_done_progress.end(token, types.WorkDoneProgressEnd())


@contextlib.asynccontextmanager
async def progress(
    server: LanguageServer, title: str, cancel: Callable[[], object]
) -> AsyncGenerator[Report]:
    """Progress as long as the context is open, where the client shows any."""
    token = await begin_progress(server, title, cancel)

    def report(message: str, percentage: int) -> None:
        if token is not None:
            report_progress(server, token, message, percentage)

    try:
        yield report
    finally:
        if token is not None:
            end_progress(server, token)


def _tokens(server: LanguageServer) -> dict[str, asyncio.Future[None]]:
    """The futures that pygls cancels when the user does."""
    held = cast("Any", server.work_done_progress).tokens
    return cast("dict[str, asyncio.Future[None]]", held)
