"""An editor window for a replay: a real language server over stdio, one document that is typed
in, one cursor.

Needs the language server's packages, which no other evaluation does: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from asyncio.subprocess import Process
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient
from pygls.workspace import PositionCodec

from model.evaluation.replay_typist import TYPED_ON, Answer, Region

ANSWER_TIMEOUT_S = 60.0
"""A server that takes longer counts as hung."""
START_TIMEOUT_S = 180.0
"""For the server to start, and again for its engine to load the model."""
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.2
_STDERR_CHARS = 2000

_LINE_END = re.compile(r"\r\n|\n|\r")
_T = TypeVar("_T")


class ServerError(Exception):
    """The language server is gone or hangs. Its text is one sentence for a person."""


class EngineError(ServerError):
    """The server runs but has no engine; another server would fare no better."""


class Editor:
    """Types into one document at a time. An async context manager; entering starts the server."""

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, object],
        *,
        environment: Mapping[str, str] | None = None,
        encodings: Sequence[str] = ("utf-16",),
        chars_per_s: float | None = None,
    ) -> None:
        """`settings` go along as initializationOptions; `environment` replaces ours.

        `encodings`: the position encodings offered. `chars_per_s`: type on at this pace whether
        or not the answer has come; None to wait for every answer.
        """
        self._command = command
        self._settings = settings
        self._environment = environment
        self._encodings = encodings
        self._beat_s = None if chars_per_s is None else 1 / chars_per_s
        self._next_beat = 0.0
        self._client = _Client()
        self._codec = PositionCodec()
        self._region: Region | None = None
        self._beside: Mapping[str, str] = {}
        self._above = 0
        self._line = ""
        self._offset = 0
        self._version = 0

    # Starting and stopping

    async def __aenter__(self) -> Editor:
        """Start the server. Raises `ServerError`."""
        try:
            await self._client.start_io(
                *self._command, env=self._environment, **_OUT_OF_REACH_OF_CTRL_C
            )
        except OSError as error:
            reason = error.strerror or error
            raise ServerError(f"cannot start {self._command[0]}: {reason}") from error
        try:
            await self._initialise()
        except BaseException:
            await self._client.leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.leave()

    async def _initialise(self) -> None:
        capabilities = types.ClientCapabilities(
            general=types.GeneralClientCapabilities(
                position_encodings=[types.PositionEncodingKind(e) for e in self._encodings]
            ),
            text_document=types.TextDocumentClientCapabilities(
                inline_completion=types.InlineCompletionClientCapabilities()
            ),
            experimental={"mezzotint": {"answers": True}},
        )
        params = types.InitializeParams(
            capabilities, process_id=os.getpid(), initialization_options=dict(self._settings)
        )
        result = await self._client.answered(self._client.initialize_async(params), START_TIMEOUT_S)
        self._codec = PositionCodec(result.capabilities.position_encoding)
        self._client.initialized(types.InitializedParams())

    async def wait_for_engine(self, language: str) -> None:
        """Have the model loaded before anything is measured. Raises `ServerError`."""
        uri = "untitled:warm-up"
        item = types.TextDocumentItem(uri, language, 1, "x")
        self._client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        deadline = time.monotonic() + START_TIMEOUT_S
        await self._request(uri, types.Position(0, 1), ANSWER_TIMEOUT_S)
        while self._client.status.get("busy") or self._client.status.get("kind") == "warning":
            if time.monotonic() > deadline:
                raise EngineError(f"no engine after {START_TIMEOUT_S:.0f} s: {self._client.state}")
            await asyncio.sleep(_POLL_S)
            await self._request(uri, types.Position(0, 1), ANSWER_TIMEOUT_S)
        self._close(uri)

    # The document

    def open(
        self, region: Region, *, offset: int = 0, beside: Mapping[Path, str] | None = None
    ) -> None:
        """Open the region's file with the first `offset` characters of the region in it, and
        have no other files open but those `beside` it, by path and text."""
        if self._region is not None:
            self._close(_uri(self._region))
        self._open_beside(beside or {}, region.language)
        self._region, self._offset, self._version = region, offset, 1
        *above, self._line = _LINE_END.split(region.head)
        self._above = len(above)
        text = region.head + region.truth[:offset] + region.tail
        item = types.TextDocumentItem(_uri(region), region.language, self._version, text)
        self._client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        self._next_beat = time.monotonic()

    def _open_beside(self, files: Mapping[Path, str], language: str) -> None:
        wanted = {path.absolute().as_uri(): text for path, text in files.items()}
        for uri in self._beside.keys() - wanted.keys():
            self._close(uri)
        for uri in [uri for uri in wanted if uri not in self._beside]:
            item = types.TextDocumentItem(uri, language, 1, wanted[uri])
            self._client.text_document_did_open(types.DidOpenTextDocumentParams(item))
        self._beside = wanted

    def _close(self, uri: str) -> None:
        identifier = types.TextDocumentIdentifier(uri)
        self._client.text_document_did_close(types.DidCloseTextDocumentParams(identifier))

    async def ask(self, offset: int) -> Answer:
        """Type or erase until the cursor is at `offset` of the open region, then ask there.

        Raises `ServerError`.
        """
        region = self._region
        assert region is not None, "open a region first"
        self._move_to(region, offset)
        place = _uri(region), self._position(region, offset)
        if self._beat_s is None:
            answer = await self._request(*place, ANSWER_TIMEOUT_S)
            if answer is None:
                raise ServerError(f"the language server did not answer in {ANSWER_TIMEOUT_S:.0f} s")
            return answer
        self._next_beat = max(self._next_beat, time.monotonic()) + self._beat_s
        answer = await self._request(*place, self._next_beat - time.monotonic())
        # Also a person who sees the suggestion early presses the next key in their own time.
        await asyncio.sleep(self._next_beat - time.monotonic())
        return answer or Answer(reason=TYPED_ON)

    def _move_to(self, region: Region, offset: int) -> None:
        """Tell the server of what is typed, or erased, between where we are and `offset`."""
        if offset == self._offset:
            return
        start, typed = min(self._offset, offset), region.truth[self._offset : offset]
        replaced = types.Range(self._position(region, start), self._position(region, self._offset))
        self._version += 1
        self._client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(self._version, _uri(region)),
                [types.TextDocumentContentChangePartial(replaced, typed)],
            )
        )
        self._offset = offset

    def _position(self, region: Region, offset: int) -> types.Position:
        *above, line = _LINE_END.split(self._line + region.truth[:offset])
        return types.Position(self._above + len(above), self._codec.client_num_units(line))

    # Requests

    async def _request(self, uri: str, position: types.Position, timeout_s: float) -> Answer | None:
        """Ask once; after `timeout_s`, cancel and return None. Raises `ServerError`."""
        automatic = types.InlineCompletionTriggerKind.Automatic
        params = types.InlineCompletionParams(
            context=types.InlineCompletionContext(automatic),
            text_document=types.TextDocumentIdentifier(uri),
            position=position,
        )
        request, method = uuid.uuid4().hex, types.TEXT_DOCUMENT_INLINE_COMPLETION
        started = time.perf_counter()
        future = self._client.protocol.send_request_async(method, params, request)
        try:
            result: types.InlineCompletionList = await self._client.answered(future, timeout_s)
        except asyncio.TimeoutError:
            self._client.cancel_request(types.CancelParams(request))
            return None
        ms = 1000 * (time.perf_counter() - started)
        told = self._client.told.pop(request, None)
        if told is None:
            raise ServerError("this language server does not tell about its answers; use ours")
        if told.kind == "warning" and self._client.status.get("kind") == "error":
            raise EngineError(self._client.state)
        items = result.items
        return Answer(
            text=str(items[0].insert_text) if items else None,
            confidence=told.suggestions[0].confidence if items else None,
            reason=told.reason or ("" if items else "the document had changed"),
            ms=ms,
            engine_ms=told.engineMs,
        )


def _uri(region: Region) -> str:
    return region.path.absolute().as_uri()


class _Client(LanguageClient):
    """pygls' client, which knows how its server is."""

    def __init__(self) -> None:
        super().__init__("mezzotint-replay", "1")
        self.status: dict[str, object] = {}
        """The last `mezzotint/status`."""
        self.told: dict[str, Any] = {}
        """What `mezzotint/answer` said, by request."""
        self._stderr = ""
        self._stderr_reader: asyncio.Task[None] | None = None
        self._ended: str | None = None
        self._end: asyncio.Future[None] | None = None
        # pygls writes attributes on handlers, which bound methods do not have.
        self.feature("mezzotint/status")(lambda status: self._on_status(status))
        self.feature("mezzotint/answer")(lambda answer: self._on_answer(answer))
        self.feature(types.WINDOW_SHOW_MESSAGE)(lambda message: self._on_message(message))

    @property
    def state(self) -> str:
        """The server's own last word on how it is."""
        return str(self.status.get("message", "it has not said how it is"))

    def _on_status(self, status: Any) -> None:
        self.status = {"kind": status.kind, "busy": status.busy, "message": status.message}

    def _on_answer(self, answer: Any) -> None:
        self.told[answer.id] = answer

    def _on_message(self, message: types.ShowMessageParams) -> None:
        print(f"the language server says: {message.message}", file=sys.stderr)

    async def start_io(self, cmd: str, *args: str, **kwargs: Any) -> None:
        """Start the server, and listen to what it logs lest the pipe fill up."""
        self._end = asyncio.get_running_loop().create_future()
        await super().start_io(cmd, *args, **kwargs)
        self._stderr_reader = asyncio.create_task(self._read_stderr(self._process))

    @property
    def _process(self) -> Process:
        assert self._server is not None
        return self._server

    async def _read_stderr(self, process: Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(4096):
            self._stderr = (self._stderr + chunk.decode("utf-8", "replace"))[-_STDERR_CHARS:]

    async def server_exit(self, server: Process) -> None:
        """Remember how it went."""
        if self._stderr_reader is not None:
            # A child of the server's may hold the pipe open for longer.
            await asyncio.wait({self._stderr_reader}, timeout=1)
        last_line = self._stderr.strip().rpartition("\n")[2]
        ended = f"the language server ended with status {server.returncode}"
        self._ended = f"{ended}: {last_line}" if last_line else ended
        assert self._end is not None
        self._end.set_result(None)

    async def answered(self, future: Awaitable[_T], timeout_s: float) -> _T:
        """The answer to a request. Raises `asyncio.TimeoutError` and `ServerError`."""
        answer = asyncio.ensure_future(future)
        # Whoever has given up on it must not be told at exit that it failed.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._ended is None:
            # A request that goes out while the end is being found out is answered by nobody.
            ends = {answer} if self._end is None else {answer, self._end}
            until = asyncio.FIRST_COMPLETED
            await asyncio.wait(ends, timeout=max(timeout_s, 0), return_when=until)
        if self._ended is not None:
            raise ServerError(self._ended)
        if not answer.done():
            raise asyncio.TimeoutError
        try:
            return answer.result()
        except (JsonRpcException, RuntimeError) as error:
            # pygls' RuntimeError says that the process is gone; `server_exit` is about to say how.
            await asyncio.wait({asyncio.ensure_future(self._process.wait())}, timeout=_POLL_S)
            await asyncio.sleep(0)
            raise ServerError(self._ended or f"the language server refused: {error}") from error

    async def leave(self) -> None:
        """Part in peace, or else by force."""
        process = self._process
        with contextlib.suppress(ServerError, asyncio.TimeoutError):
            await self.answered(self.shutdown_async(None), _STOP_TIMEOUT_S)
            self.exit(None)
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            process.kill()
        await self.stop()
        if self._stderr_reader is not None:
            self._stderr_reader.cancel()


if sys.platform == "win32":
    _OUT_OF_REACH_OF_CTRL_C: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    _OUT_OF_REACH_OF_CTRL_C: dict[str, Any] = {"start_new_session": True}
