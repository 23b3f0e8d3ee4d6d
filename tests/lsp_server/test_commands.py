"""Commands, code actions and what a client reports, in sessions with the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import TIMEOUT_S, Session, StartSession
from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcRequestCancelled

HOLES = "a = <FILL>\nb = <FILL>\n"
HERE, SELECTION, ALL = "mezzotint.fill.here", "mezzotint.fill.selection", "mezzotint.fill.holes"


def position(line: int, character: int) -> dict[str, int]:
    return {"line": line, "character": character}


def document_edit(session: Session) -> types.TextDocumentEdit:
    """The one edit of one document that the client was asked to make."""
    (params,) = session.edits
    assert params.edit.document_changes is not None
    (edit,) = params.edit.document_changes
    assert isinstance(edit, types.TextDocumentEdit)
    return edit


def fill_progress(session: Session) -> tuple[Any, list[Any]]:
    """Token and reports of the progress of a fill (the model's loading has one as well)."""
    for token, reports in session.progress_reports.items():
        if reports and getattr(reports[0], "title", "").startswith("Mezzotint: Fill"):
            return token, reports
    return None, []


async def actions(
    session: Session,
    uri: str,
    start: tuple[int, int],
    end: tuple[int, int],
    *,
    kind: types.CodeActionTriggerKind = types.CodeActionTriggerKind.Invoked,
    only: list[types.CodeActionKind] | None = None,
) -> list[str]:
    params = types.CodeActionParams(
        types.TextDocumentIdentifier(uri),
        types.Range(types.Position(*start), types.Position(*end)),
        types.CodeActionContext([], only=only, trigger_kind=kind),
    )
    answer = await asyncio.wait_for(session.text_document_code_action_async(params), TIMEOUT_S)
    return [action.title for action in answer or []]


async def test_every_hole_is_filled_by_one_edit_of_the_version_it_was_made_for(
    start_session: StartSession,
):
    session = await start_session("--text", "1")
    uri = session.open(HOLES)
    result = await session.run(ALL, {"uri": uri})
    assert (result.applied, result.version, result.reason) == (True, 1, None)
    edit = document_edit(session)
    assert (edit.text_document.uri, edit.text_document.version) == (uri, 1)
    assert [(e.range.start.line, e.range.start.character, e.new_text) for e in edit.edits] == [
        (0, 4, "1"),
        (1, 4, "1"),
    ]
    (request,) = session.journal("request")
    assert request["between"] == ["\nb = "]
    await session.until(lambda: [r.kind for r in fill_progress(session)[1]][-1:] == ["end"])
    begin, *reports, _ = fill_progress(session)[1]
    assert begin.cancellable is True
    assert [report.message for report in reports][-1:] == ["2 of 2"]


async def test_a_client_that_chooses_is_given_the_candidates_and_no_edit(
    start_session: StartSession,
):
    session = await start_session("--text", "2", "--text", "x", encoding="utf-8")
    uri = session.open("y = '😀' + \n")
    # In UTF-8, the emoji takes four units.
    result = await session.run(HERE, {"uri": uri, "position": position(0, 13), "apply": False})
    assert session.edits == []
    first, second = result.candidates
    assert [edit.newText for edit in first.edits] == ["2"]
    assert (first.edits[0].range.start.character, second.edits[0].newText) == (13, "x")
    assert (first.confidence, first.newSyntaxErrors, result.applied) == (0.9, 0, False)


async def test_a_client_that_asks_for_it_sees_what_was_drafted_and_verified(
    start_session: StartSession,
):
    session = await start_session("--text", "2")
    uri = session.open("y = \n")
    at = {"uri": uri, "position": position(0, 4), "apply": False}
    await session.run(HERE, at)
    await session.run(HERE, at | {"frames": "film"})
    await session.until(lambda: session.frames)
    (frame,) = session.frames
    assert (frame.token, frame.step, frame.text) == ("film", 1, "2")
    assert (list(frame.slots), frame.accepted) == (["", "~"], 1)


async def test_a_selection_is_replaced(start_session: StartSession):
    session = await start_session("--text", "new()", versioned=False)
    uri = session.open("x = '😀'\nold(1)\n")
    span = {"start": position(1, 0), "end": position(2, 0)}
    result = await session.run(SELECTION, {"uri": uri, "range": span, "version": 1})
    assert result.applied is True
    (params,) = session.edits
    assert params.edit.changes is not None
    (edit,) = params.edit.changes[uri]
    word = types.Range(types.Position(1, 0), types.Position(1, 6))
    assert edit == types.TextEdit(word, "new()")


async def test_nothing_is_applied_to_a_document_that_has_moved_on(start_session: StartSession):
    session = await start_session("--text", "1", "--delay-s", "0.5")
    uri = session.open(HOLES)
    filling = asyncio.create_task(session.run(ALL, {"uri": uri}))
    await session.until(lambda: session.journal("request"))
    session.edit(uri, (0, 0), (0, 0), "# new\n")
    result = await filling
    assert (result.applied, result.reason) == (False, "the document has changed in the meantime")
    assert session.edits == []
    stale = await session.run(ALL, {"uri": uri, "version": 1})
    assert stale.reason == "the document has changed in the meantime"


async def test_a_document_closed_while_a_fill_runs_is_left_alone(start_session: StartSession):
    session = await start_session("--text", "1", "--delay-s", "0.5")
    uri = session.open(HOLES)
    filling = asyncio.create_task(session.run(ALL, {"uri": uri}))
    await session.until(lambda: session.journal("request"))
    session.close(uri)
    session.open(HOLES)  # again, and again of version 1
    assert (await filling).applied is False
    assert session.edits == []


async def test_the_users_cancel_and_the_requests_cancel_both_reach_the_engine(
    start_session: StartSession,
):
    session = await start_session("--text", "1", "--delay-s", "60")
    uri = session.open(HOLES)
    filling = asyncio.create_task(session.run(ALL, {"uri": uri}))
    await session.until(lambda: session.journal("request"))
    await session.until(lambda: fill_progress(session)[1])
    token, _ = fill_progress(session)
    session.window_work_done_progress_cancel(types.WorkDoneProgressCancelParams(token))
    result = await filling
    assert (result.applied, result.reason) == (False, "cancelled")
    assert len(session.journal("cancelled")) == 1

    params = types.ExecuteCommandParams(ALL, arguments=[{"uri": uri}])
    answer = session.protocol.send_request(types.WORKSPACE_EXECUTE_COMMAND, params, msg_id="mine")
    await session.until(lambda: len(session.journal("request")) == 2)
    session.cancel_request(types.CancelParams(id="mine"))
    with pytest.raises(JsonRpcRequestCancelled):
        await asyncio.wait_for(asyncio.wrap_future(answer), TIMEOUT_S)
    await session.until(lambda: len(session.journal("cancelled")) == 2)
    assert session.edits == []


async def test_typing_while_a_fill_runs_does_not_cancel_it(start_session: StartSession):
    session = await start_session("--text", "1", "--delay-s", "0.3")
    uri = session.open(HOLES)
    filling = asyncio.create_task(session.run(ALL, {"uri": uri}))
    await session.until(lambda: session.journal("request"))
    await session.inline(uri, 1, 0, automatic=True)
    assert (await filling).applied is True


async def test_an_edit_that_the_editor_refuses_is_told(start_session: StartSession):
    session = await start_session("--text", "1")
    session.apply = False
    result = await session.run(ALL, {"uri": session.open(HOLES)})
    assert (result.applied, result.reason) == (False, "the user is looking elsewhere")


async def test_a_command_says_what_it_lacks(start_session: StartSession):
    session = await start_session("--text", "1")
    uri = session.open(HOLES)
    for command, arguments, lacks in (
        (HERE, [{"uri": uri}], "a position"),
        (SELECTION, [{"uri": uri, "range": 3}], "a range"),
        (ALL, [], "one object"),
    ):
        with pytest.raises(JsonRpcException, match=lacks):
            await session.run(command, *arguments)
    result = await session.run(ALL, {"uri": "file:///elsewhere.py"})
    assert result.reason == "the editor has not opened this document"


async def test_code_actions_offer_what_can_be_filled(start_session: StartSession):
    session = await start_session("--text", "1", settings={"languages": {"go": False}})
    automatic = types.CodeActionTriggerKind.Automatic
    uri = session.open(HOLES + "c = 3\n")
    every = "Fill every hole in this file (2)"
    await session.until(lambda: session.statuses)
    assert await actions(session, uri, (2, 0), (2, 0)) == ["Fill here", every]
    assert await actions(session, uri, (2, 0), (2, 3)) == ["Fill selection", every]
    assert await actions(session, uri, (2, 0), (2, 0), kind=automatic) == []
    assert await actions(session, uri, (1, 0), (1, 0), kind=automatic) == [every]
    quick_fix = [types.CodeActionKind.QuickFix]
    rewrite = [types.CodeActionKind.RefactorRewrite]
    assert await actions(session, uri, (1, 0), (1, 0), only=quick_fix) == []
    assert await actions(session, uri, (1, 0), (1, 0), only=rewrite) == ["Fill here", every]
    secret = session.open(HOLES, uri="file:///work/.env")
    go = session.open(HOLES, uri="file:///tmp/a.go", language="go")
    assert await actions(session, secret, (0, 0), (0, 3)) == []
    assert await actions(session, go, (0, 0), (0, 3)) == []


@pytest.mark.parametrize("length", [3, 3.0])
async def test_what_becomes_of_items_is_counted_and_can_be_forgotten(
    start_session: StartSession, state_directory: Any, length: float
):
    session = await start_session("--text", "max(x)")
    uri = session.open("y = \n")
    (item,) = await session.inline(uri, 0, 4)
    shown = {"item": session.protocol._converter.unstructure(item)}
    session.protocol.notify("textDocument/didShowCompletion", shown)
    partly = {**shown, "acceptedLength": length}
    session.protocol.notify("textDocument/didPartiallyAcceptCompletion", partly)
    assert item.command is not None
    await session.run(item.command.command, *(item.command.arguments or []))
    figures = await session.run("mezzotint.statistics")
    assert (figures.shown, figures.accepted, figures.partiallyAccepted) == (1, 1, 1)
    assert (figures.charactersAccepted, figures.acceptanceRate) == (6, 1.0)
    assert "max" not in next(state_directory.iterdir()).read_text()

    session.edit(uri, (0, 0), (0, 1), "z")
    (item,) = await session.inline(uri, 0, 4)
    rejected = {"item": session.protocol._converter.unstructure(item)}
    session.protocol.notify("textDocument/didRejectCompletion", rejected)
    session.protocol.notify("textDocument/didRejectCompletion", {"item": {}})
    assert (await session.run("mezzotint.statistics")).rejected == 1
    await session.run("mezzotint.statistics.reset")
    assert (await session.run("mezzotint.statistics")).accepted == 0


async def test_the_status_tells_busy_and_then_the_price(start_session: StartSession):
    session = await start_session("--text", "2", "--delay-s", "0.2")
    await session.inline(session.open("y = \n"), 0, 4)
    await session.until(lambda: session.statuses[-1].state == "ready")
    assert "busy" in [status.state for status in session.statuses]
    assert (session.statuses[-1].ms, session.statuses[-1].forwards) == (1.0, 1)


@pytest.mark.parametrize(
    ("line", "character", "is_position"),
    [
        (1, 4, True),
        (1.0, 4.0, True),
        (1, 4.5, False),
        (1, True, False),
        (-1.0, 4, False),
        ("1", 4, False),
        (None, 4, False),
        (1e400, 4, False),
    ],
)
async def test_a_whole_number_is_one_however_it_is_written(
    start_session: StartSession, line: object, character: object, is_position: bool
):
    session = await start_session("--text", "1")
    where = {"uri": session.open(HOLES), "position": {"line": line, "character": character}}
    if is_position:
        assert (await session.run(HERE, where)).candidates
    else:
        with pytest.raises(JsonRpcException, match="needs a position"):
            await session.run(HERE, where)
