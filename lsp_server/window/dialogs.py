"""What the server wants of the editor's window: an answer, and progress that can be cancelled."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, cast

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer

_PROGRESS_TIMEOUT_S = 5.0


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


class Progress:
    """How far one task is, shown where the client shows such things; the user may cancel it there.

    What is reported before the client is ready is not lost.
    """

    def __init__(self, server: LanguageServer, title: str) -> None:
        self._server = server
        self._title = title
        self._token: str | None = None
        self._latest: tuple[str, int] | None = None

    def report(self, message: str, percentage: int) -> None:
        """Tell how far it is: a few words, and per cent."""
        self._latest = message, percentage
        self._show()

    async def watch(self, task: asyncio.Future[Any]) -> None:
        """Show progress until `task` is done, or cancelled by the user, or by whoever cancels this.
        Raises nothing of the task's."""
        try:
            self._token = await self._begin(task)
            self._show()
            # Unlike `await task`, this tells our own cancellation from the task's.
            await asyncio.wait((task,))
        finally:
            task.cancel()
            self._end()

    async def _begin(self, task: asyncio.Future[Any]) -> str | None:
        """The token of progress that the client shows now, or None if it cannot."""
        server = self._server
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
        begin = types.WorkDoneProgressBegin(
            f"Mezzotint: {self._title}", cancellable=True, percentage=0
        )
        server.work_done_progress.begin(token, begin)

        def on_cancelled(_: object) -> None:
            task.cancel()

        self._cancelled_by_user[token].add_done_callback(on_cancelled)
        return token

    def _show(self) -> None:
        if self._token is not None and self._latest is not None:
            message, percentage = self._latest
            report = types.WorkDoneProgressReport(message=message, percentage=percentage)
            self._server.work_done_progress.report(self._token, report)

    def _end(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            self._cancelled_by_user.pop(token, None)
            self._server.work_done_progress.end(token, types.WorkDoneProgressEnd())

    @property
    def _cancelled_by_user(self) -> dict[str, asyncio.Future[None]]:
        """The futures that pygls cancels when the user does, by token."""
        held = cast("Any", self._server.work_done_progress).tokens
        return cast("dict[str, asyncio.Future[None]]", held)
