"""Hints where a document has holes, as diagnostics of the lowest severity.

They are published: every client shows those, and few can pull any. A client may get them when it
has just moved on; that is put right once the typing pauses again, and no fill relies on where a
hint is, only on the document.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from itertools import accumulate
from typing import Any

from lsprotocol import types
from pygls.workspace import PositionCodec, TextDocument

from lsp_server.ask.documents import language, may_be_read, name_of, position_at
from lsp_server.document.holes import EXPLICIT, find_holes
from lsp_server.settings import SECTION, Settings

MESSAGE = "A hole that Mezzotint can fill."

Publish = Callable[[types.PublishDiagnosticsParams], None]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class HoleHints:
    """What the client has been told of the holes in each open document."""

    def __init__(self, publish: Publish, spawn: Spawn) -> None:
        self._publish = publish
        self._spawn = spawn
        self._hinted: dict[str, str] = {}
        """The URIs that the hints were published for, by the names of the documents."""
        self._pending: dict[str, asyncio.Task[None]] = {}

    def refresh(self, document: TextDocument, settings: Settings, *, after_s: float = 0.0) -> None:
        """Tell the holes of `document` in `after_s` seconds, unless this is called again before."""
        name = name_of(document.uri)
        self._drop(name)
        self._pending[name] = self._spawn(self._tell(document, settings, after_s))

    def forget(self, name: str) -> None:
        """Take back the hints of a closed document."""
        self._drop(name)
        if (uri := self._hinted.pop(name, None)) is not None:
            self._publish(types.PublishDiagnosticsParams(uri, []))

    def _drop(self, name: str) -> None:
        if (pending := self._pending.pop(name, None)) is not None:
            pending.cancel()

    async def _tell(self, document: TextDocument, settings: Settings, after_s: float) -> None:
        await asyncio.sleep(after_s)
        uri, name, version = document.uri, name_of(document.uri), document.version
        found: list[types.Diagnostic] = []
        if settings.hole_hints != "off" and may_be_read(document, settings):
            place = (document.source, document.lines, document.position_codec, language(document))
            # A large file takes a while. If it changes meanwhile, this task is cancelled.
            found = await asyncio.to_thread(hints_in, *place, every=settings.hole_hints == "all")
        if found or name in self._hinted:
            self._publish(types.PublishDiagnosticsParams(uri, found, version))
        if found:
            self._hinted[name] = uri
        else:
            self._hinted.pop(name, None)


def hints_in(
    text: str, lines: Sequence[str], codec: PositionCodec, language: str, *, every: bool
) -> list[types.Diagnostic]:
    """A hint for each hole of a text with those lines; `every` includes the markers that people
    also write for other reasons. The code of a hint is its marker."""
    starts = list(accumulate(map(len, lines[:-1]), initial=0))

    def position(offset: int) -> types.Position:
        line = bisect_right(starts, offset) - 1
        within = position_at(lines[line : line + 1], codec, offset - starts[line])
        return types.Position(line, within.character)

    return [
        types.Diagnostic(
            types.Range(position(hole.marked_from), position(hole.end)),
            MESSAGE,
            severity=types.DiagnosticSeverity.Hint,
            code=hole.marker,
            source=SECTION,
        )
        for hole in find_holes(text, language)
        if every or hole.marker in EXPLICIT
    ]
