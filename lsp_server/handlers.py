"""What the server does on each message; `commands` and `code_actions` have theirs.

An error becomes an empty answer and a `mezzotint/status` notification.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcException
from pygls.workspace import PositionCodec, TextDocument

from lsp_server.ask.completion import Reason, Suggestion
from lsp_server.ask.documents import (
    Place,
    locate,
    num_units,
)
from lsp_server.ask.trigger import is_snippet
from lsp_server.engine_link.parent import process_exists
from lsp_server.server import ACCEPTED, MezzotintServer
from lsp_server.settings import SECTION

logger = logging.getLogger(__name__)

_PARENT_POLL_S = 2.0


# pygls passes the server to a parameter named `ls`.


def on_initialize(ls: MezzotintServer, params: types.InitializeParams) -> None:
    """Offer what depends on the client. pygls answers with the capabilities."""
    # An editor in another container has a process id that means nothing here.
    if params.process_id is not None and process_exists(params.process_id):
        ls.spawn(exit_with(ls, params.process_id))
    ls.protocol.adopt_lsp_lines()
    ls.initialization_options = ls.keys.taken_from(params.initialization_options)
    if get_capability(params.capabilities, "text_document.inline_completion") is None:
        ls.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions())(on_completion)


async def on_initialized(ls: MezzotintServer, params: types.InitializedParams) -> None:
    """Fetch the settings, and ask to be told when they change."""
    await ls.pull_settings()
    capability = "workspace.did_change_configuration.dynamic_registration"
    if get_capability(ls.client_capabilities, capability):
        registration = types.Registration(
            id=f"{SECTION}-settings",
            method=types.WORKSPACE_DID_CHANGE_CONFIGURATION,
            register_options=types.DidChangeConfigurationRegistrationOptions(section=SECTION),
        )
        try:
            await ls.client_register_capability_async(types.RegistrationParams([registration]))
        except JsonRpcException as error:
            logger.info("the client does not announce changed settings: %s", error)


async def on_configuration(ls: MezzotintServer, params: types.DidChangeConfigurationParams) -> None:
    """Settings changed: ask for them, or take those that came along."""
    pushed: object = params.settings
    if isinstance(pushed, dict):
        pushed = cast("dict[str, object]", pushed).get(SECTION)
    await ls.pull_settings(pushed)


async def on_open(ls: MezzotintServer, params: types.DidOpenTextDocumentParams) -> None:
    """Load the model before the first completion needs it."""
    document = ls.open_document(params.text_document.uri)
    if document is not None:
        ls.hint(document)
        await ls.warm_up(document)


def on_change(ls: MezzotintServer, params: types.DidChangeTextDocumentParams) -> None:
    """Remember where something was changed; pygls has applied the change already."""
    document = ls.document(params.text_document.uri)
    if document is not None:
        ls.note_edits(document, params.content_changes)
        ls.hint(document, changed=True)


def on_close(ls: MezzotintServer, params: types.DidCloseTextDocumentParams) -> None:
    """Forget a closed document."""
    ls.forget(params.text_document.uri)


async def on_open_notebook(
    ls: MezzotintServer, params: types.DidOpenNotebookDocumentParams
) -> None:
    """Load the model before the first completion in a cell needs it."""
    cells = [ls.open_document(cell.uri) for cell in params.cell_text_documents]
    for document in filter(None, cells):
        ls.hint(document)
    for document in filter(None, cells[:1]):
        await ls.warm_up(document)


def on_change_notebook(ls: MezzotintServer, params: types.DidChangeNotebookDocumentParams) -> None:
    """Cells were written in, added or taken away."""
    changed = params.change.cells
    if changed is None:
        return
    for cell in changed.structure.did_close or [] if changed.structure else []:
        ls.forget(cell.uri)
    opened = (changed.structure.did_open or []) if changed.structure else []
    changes = {cell.uri: list[types.TextDocumentContentChangeEvent]() for cell in opened}
    changes |= {cell.document.uri: cell.changes for cell in changed.text_content or []}
    for uri, written in changes.items():
        document = ls.document(uri)
        if document is not None:
            ls.note_edits(document, written)
            ls.hint(document, changed=True)


def on_close_notebook(ls: MezzotintServer, params: types.DidCloseNotebookDocumentParams) -> None:
    """Forget the cells of a closed notebook."""
    for cell in params.cell_text_documents:
        ls.forget(cell.uri)


async def on_shutdown(ls: MezzotintServer, params: None) -> None:
    """Let go of the engine before the client says `exit`."""
    await ls.close_engine()


async def on_inline_completion(
    ls: MezzotintServer, params: types.InlineCompletionParams
) -> types.InlineCompletionList:
    """Ghost text at the cursor, or what extends the item selected in the completion list."""
    items: list[types.InlineCompletionItem] = []
    document = ls.open_document(params.text_document.uri)
    with logged(ls):
        if document is not None:
            items = await inline_items(ls, document, params)
    return types.InlineCompletionList(items=items)


async def inline_items(
    ls: MezzotintServer, document: TextDocument, params: types.InlineCompletionParams
) -> list[types.InlineCompletionItem]:
    """Complete at the position; every item says explicitly what it replaces, within one line."""
    text, lines, codec = document.source, document.lines, document.position_codec
    explicit = params.context.trigger_kind == types.InlineCompletionTriggerKind.Invoked
    selected = params.context.selected_completion_info
    if selected is None:
        place = locate(lines, codec, params.position)
        start, end, beginning = place.offset, place.offset, ""
        replaced = types.Range(place.position, place.position)
    else:
        # As though the selected item were accepted: what we add goes on from its text.
        start = locate(lines, codec, selected.range.start).offset
        end = locate(lines, codec, selected.range.end).offset
        beginning, replaced = selected.text, selected.range
        if replaced.start.line != replaced.end.line or is_snippet(beginning):
            return []
    completion = await ls.complete(
        document, text[:start] + beginning + text[end:], start + len(beginning), explicit=explicit
    )
    ls.tell_answer(completion)
    return [
        types.InlineCompletionItem(
            insert_text=beginning + suggestion.text,
            range=replaced,
            command=types.Command("Accepted", ACCEPTED, arguments=[suggestion.id]),
        )
        for suggestion in ls.offered(document, completion.suggestions)
    ]


async def on_completion(
    ls: MezzotintServer, params: types.CompletionParams
) -> types.CompletionList:
    """Entries in the ordinary completion list, for clients that know no ghost text."""
    items: list[types.CompletionItem] = []
    document = ls.open_document(params.text_document.uri)
    with logged(ls):
        if document is not None:
            place = locate(document.lines, document.position_codec, params.position)
            # The protocol calls typing an identifier "invoked" as well: only a user who turned
            # the automatic completions off can mean it.
            invoked = types.CompletionTriggerKind.Invoked
            asked = params.context is not None and params.context.trigger_kind == invoked
            completion = await ls.complete(
                document, document.source, place.offset, explicit=asked and ls.manual_only()
            )
            codec = document.position_codec
            offered = ls.offered(document, completion.suggestions)
            items = [_list_item(s, place, codec, i) for i, s in enumerate(offered)]
    return types.CompletionList(is_incomplete=True, items=items)


def _list_item(
    suggestion: Suggestion, place: Place, codec: PositionCodec, index: int
) -> types.CompletionItem:
    """One entry. It replaces the word before the cursor, by which clients filter their lists."""
    line, column = place.position.line, place.position.character
    start = types.Position(line, column - num_units(place.word, codec))
    new_text = place.word + suggestion.text
    first_line = new_text.strip().partition("\n")[0].rstrip("\r")
    return types.CompletionItem(
        label=first_line,
        kind=types.CompletionItemKind.Text,
        detail="Mezzotint",
        documentation=new_text,
        # `~` sorts behind letters and digits: below what language servers know for certain.
        sort_text=f"~{index:02}",
        insert_text_mode=types.InsertTextMode.AsIs,
        text_edit=types.TextEdit(types.Range(start, place.position), new_text),
        command=types.Command("Accepted", ACCEPTED, arguments=[suggestion.id]),
    )


@contextmanager
def logged(ls: MezzotintServer) -> Generator[None]:
    """An error of ours must cost an answer, not a pop-up: log it, say so in the status."""
    try:
        yield
    except Exception:
        logger.exception("request %s failed", ls.protocol.msg_id)
        ls.status.answered(Reason(kind="error", message="internal error: see the log"))


async def exit_with(ls: MezzotintServer, process_id: int) -> None:
    """End this process when the editor's is gone without having said so."""
    while process_exists(process_id):
        await asyncio.sleep(_PARENT_POLL_S)
    logger.warning("the editor's process %d is gone: exiting", process_id)
    try:
        await asyncio.wait_for(ls.close_engine(), _PARENT_POLL_S)
    finally:
        # The thread that blocks on stdin cannot be joined; `sys.exit` would wait for it.
        os._exit(1)
