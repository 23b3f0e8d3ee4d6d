"""Commands that fill on demand, and what the client tells of suggestions.

docs/editors-protocol.md is the contract: names, arguments, results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, cast

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams
from pygls.workspace import TextDocument

from lsp_server.ask.completion import Reason
from lsp_server.ask.documents import offsets, position_at
from lsp_server.ask.fill import Filled, Filler, Filling, Progress
from lsp_server.check.confidence import told
from lsp_server.server import ACCEPTED, MezzotintServer
from lsp_server.settings import SECTION
from lsp_server.window import dialogs
from model.api import Frame, FrameListener

HERE, SELECTION, HOLES = (f"{SECTION}.fill.{what}" for what in ("here", "selection", "holes"))
STATISTICS, RESET_STATISTICS = f"{SECTION}.statistics", f"{SECTION}.statistics.reset"
OFFER_MODEL = f"{SECTION}.model.offer"

DID_SHOW = "textDocument/didShowCompletion"
DID_PARTIALLY_ACCEPT = "textDocument/didPartiallyAcceptCompletion"
DID_REJECT = "textDocument/didRejectCompletion"

FRAME = f"{SECTION}/frame"
"""Notification {token, step, slots, accepted, text}: a fill after a step."""

TITLES = {HERE: "Fill here", SELECTION: "Fill selection", HOLES: "Fill every hole in this file"}
_MOVED_ON = "the document has changed in the meantime"

Fill = Callable[[Filler, Progress], Awaitable[Filled]]


def register(server: MezzotintServer) -> None:
    """Give `server` the commands and notifications of this file."""
    for name, handler in (
        (HERE, on_fill_here),
        (SELECTION, on_fill_selection),
        (HOLES, on_fill_holes),
        (ACCEPTED, on_accepted),
        (STATISTICS, on_statistics),
        (RESET_STATISTICS, on_reset_statistics),
        (OFFER_MODEL, on_offer_model),
    ):
        server.command(name)(handler)
    for method, handler in (
        (DID_SHOW, on_shown),
        (DID_PARTIALLY_ACCEPT, on_partially_accepted),
        (DID_REJECT, on_rejected),
    ):
        server.feature(method)(handler)


# --- Filling ----------------------------------------------------------------------------------


async def on_fill_here(ls: MezzotintServer, *arguments: Any) -> dict[str, Any]:
    """`mezzotint.fill.here`."""
    argument = _argument(arguments, HERE)
    position = _position(argument.get("position"), HERE)
    return await _fill_span(ls, HERE, argument, types.Range(position, position))


async def on_fill_selection(ls: MezzotintServer, *arguments: Any) -> dict[str, Any]:
    """`mezzotint.fill.selection`."""
    argument = _argument(arguments, SELECTION)
    return await _fill_span(ls, SELECTION, argument, _range(argument.get("range"), SELECTION))


async def _fill_span(
    ls: MezzotintServer, command: str, argument: Mapping[str, Any], span: types.Range
) -> dict[str, Any]:
    document = _document(ls, argument)
    if isinstance(document, str):
        return _result(None, reason=document)
    on_frame = _frame_sender(ls, argument.get("frames"))

    def fill(filler: Filler, _: Progress) -> Awaitable[Filled]:
        start, end = offsets(document.lines, document.position_codec, span)
        return filler.span(ls.snapshot(document, document.source, start), end, on_frame)

    return await _fill(ls, command, document, argument, fill)


def _frame_sender(ls: MezzotintServer, token: object) -> FrameListener | None:
    """Sends each frame to a client that gave its command the token `frames`."""
    if not isinstance(token, str):
        return None

    def send(frame: Frame) -> None:
        fields = {
            "token": token,
            "step": frame.step,
            "slots": list(frame.slots),
            "accepted": frame.accepted,
            "text": frame.text,
        }
        ls.protocol.notify(FRAME, fields)

    return send


async def on_fill_holes(ls: MezzotintServer, *arguments: Any) -> dict[str, Any]:
    """`mezzotint.fill.holes`."""
    argument = _argument(arguments, HOLES)
    raw = argument.get("range")
    span = None if raw is None else _range(raw, HOLES)
    document = _document(ls, argument)
    if isinstance(document, str):
        return _result(None, reason=document)

    def fill(filler: Filler, report: Progress) -> Awaitable[Filled]:
        within = None if span is None else offsets(document.lines, document.position_codec, span)
        return filler.holes(ls.snapshot(document, document.source, 0), report, within)

    return await _fill(ls, HOLES, document, argument, fill)


async def _fill(
    ls: MezzotintServer,
    command: str,
    document: TextDocument,
    argument: Mapping[str, Any],
    fill: Fill,
) -> dict[str, Any]:
    """Run `fill` with progress, and apply the best filling unless the client wants to choose."""
    version, lines = document.version, document.lines
    filler = await ls.filler()
    if not ls.is_current(document, version):
        return _result(version, reason=_MOVED_ON)
    with ls.status.working():
        filled = await _with_progress(ls, TITLES[command], partial(fill, filler))
        result = filled.completion.result if filled.completion else None
        ls.status.answered(filled.reason, result)
    if not ls.is_current(document, version):
        return _result(version, reason=_MOVED_ON)
    candidates = [_edits(document, lines, filling) for filling in filled.fillings]
    applied, reason = False, filled.reason.message if filled.reason else None
    if candidates and argument.get("apply", True):
        applied, reason = await _apply(ls, document, TITLES[command], candidates[0])
    return _result(
        version,
        applied=applied,
        reason=reason,
        candidates=[
            {
                "confidence": told(filling.confidence),
                "newSyntaxErrors": filling.new_syntax_errors,
                "edits": [_as_json(edit) for edit in edits],
            }
            for filling, edits in zip(filled.fillings, candidates, strict=True)
        ],
    )


def _as_json(edit: types.TextEdit) -> dict[str, Any]:
    start, end = (
        {"line": position.line, "character": position.character}
        for position in (edit.range.start, edit.range.end)
    )
    return {"range": {"start": start, "end": end}, "newText": edit.new_text}


def _edits(document: TextDocument, lines: Any, filling: Filling) -> list[types.TextEdit]:
    codec = document.position_codec
    return [
        types.TextEdit(
            types.Range(position_at(lines, codec, e.start), position_at(lines, codec, e.end)),
            e.text,
        )
        for e in filling.edits
    ]


async def _apply(
    ls: MezzotintServer, document: TextDocument, label: str, edits: list[types.TextEdit]
) -> tuple[bool, str | None]:
    """Have the client make the edits, as one; whether it did, and if not why."""
    if get_capability(ls.client_capabilities, "workspace.workspace_edit.document_changes"):
        versioned = types.OptionalVersionedTextDocumentIdentifier(document.uri, document.version)
        edit = types.WorkspaceEdit(document_changes=[types.TextDocumentEdit(versioned, [*edits])])
    else:
        edit = types.WorkspaceEdit(changes={document.uri: edits})
    try:
        answer = await ls.workspace_apply_edit_async(types.ApplyWorkspaceEditParams(edit, label))
    except JsonRpcException as error:
        return False, f"the editor refused the edit: {error.message}"
    return answer.applied, None if answer.applied else answer.failure_reason or "not applied"


async def _with_progress(
    ls: MezzotintServer, title: str, fill: Callable[[Progress], Awaitable[Filled]]
) -> Filled:
    """Run `fill` while the client shows how far it is; the user may cancel it there."""
    progress = dialogs.Progress(ls, title)

    def report(done: int, total: int) -> None:
        progress.report(f"{done} of {total}", round(100 * done / total))

    task = asyncio.ensure_future(fill(report))
    with ls.protocol.cancelling(task):
        await progress.watch(task)
    if task.cancelled():
        return Filled(reason=Reason(kind="normal", message="cancelled"))
    return task.result()


def _document(ls: MezzotintServer, argument: Mapping[str, Any]) -> TextDocument | str:
    """The document a command is about, or why there is none to fill."""
    document = ls.open_document(str(argument.get("uri", "")))
    if document is None:
        return "the editor has not opened this document"
    if argument.get("version", document.version) not in (None, document.version):
        return _MOVED_ON
    return document


def _result(
    version: int | None,
    *,
    applied: bool = False,
    reason: str | None = None,
    candidates: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "applied": applied,
        "version": version,
        "reason": reason,
        "candidates": candidates or [],
    }


def _argument(arguments: tuple[Any, ...], command: str) -> Mapping[str, Any]:
    if len(arguments) == 1 and isinstance(arguments[0], Mapping):
        return cast("Mapping[str, Any]", arguments[0])
    raise _invalid(command, "one object as its argument")


def _position(raw: object, command: str) -> types.Position:
    numbers = cast("Mapping[str, object]", raw if isinstance(raw, Mapping) else {})
    line, character = _count(numbers.get("line")), _count(numbers.get("character"))
    if line is None or character is None:
        raise _invalid(command, "a position with line and character")
    return types.Position(line, character)


def _count(raw: object) -> int | None:
    """A whole number of at least 0; some clients' JSON has 4.0 for 4."""
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0 else None


def _range(raw: object, command: str) -> types.Range:
    if not isinstance(raw, Mapping):
        raise _invalid(command, "a range with start and end")
    ends = cast("Mapping[str, object]", raw)
    return types.Range(_position(ends.get("start"), command), _position(ends.get("end"), command))


def _invalid(command: str, wanted: str) -> JsonRpcInvalidParams:
    return JsonRpcInvalidParams(f"{command} needs {wanted}")


# --- What becomes of suggestions ----------------------------------------------------------------


def on_accepted(ls: MezzotintServer, *arguments: Any) -> None:
    """The client has inserted an item."""
    if arguments:
        ls.suggestions.accepted(str(arguments[0]))


def on_shown(ls: MezzotintServer, params: Any) -> None:
    """The user sees an item."""
    ls.suggestions.shown(_item_id(params))


def on_partially_accepted(ls: MezzotintServer, params: Any) -> None:
    """The user has taken the beginning of an item."""
    length = _count(getattr(params, "acceptedLength", 0))
    if length is not None:
        ls.suggestions.partly_accepted(_item_id(params), length)


def on_rejected(ls: MezzotintServer, params: Any) -> None:
    """The user has dismissed an item."""
    ls.suggestions.rejected(_item_id(params))


def _item_id(params: Any) -> str:
    """The id in `item.command.arguments`; "" where there is none."""
    try:
        return str(params.item.command.arguments[0])
    except (AttributeError, IndexError, TypeError):
        return ""


def on_offer_model(ls: MezzotintServer, *arguments: Any) -> None:
    """`mezzotint.model.offer`: ask once more whether to download the model that is not here."""
    ls.offer_model()


def on_statistics(ls: MezzotintServer) -> dict[str, Any]:
    """`mezzotint.statistics`."""
    return ls.suggestions.summary()


def on_reset_statistics(ls: MezzotintServer) -> None:
    """`mezzotint.statistics.reset`."""
    ls.suggestions.reset()
