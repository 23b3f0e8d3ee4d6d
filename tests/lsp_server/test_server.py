"""Sessions with the real server, over stdio, on a fake engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, TIMEOUT_S, StartSession
from lsprotocol import types
from pygls.exceptions import JsonRpcRequestCancelled

from lsp_server.engine_link.parent import process_exists

SOURCE = "x = 1\ny = \nz = 3\n"


def texts(items: list[types.InlineCompletionItem]) -> list[Any]:
    return [item.insert_text for item in items]


# What is offered


async def test_a_client_with_ghost_text_is_offered_inline_completion_only(
    start_session: StartSession,
):
    session = await start_session()
    offered = session.initialize_result.capabilities
    assert offered.inline_completion_provider == types.InlineCompletionOptions()
    assert offered.completion_provider is None
    assert offered.text_document_sync.change == types.TextDocumentSyncKind.Incremental
    assert offered.text_document_sync.open_close is True


async def test_a_client_without_ghost_text_is_offered_list_completion(start_session: StartSession):
    session = await start_session(inline=False)
    assert session.initialize_result.capabilities.completion_provider is not None


async def test_the_engine_starts_with_the_first_supported_document_and_not_before(
    start_session: StartSession,
):
    session = await start_session(settings={"languages": {"*": True, "plaintext": False}})
    await session.until(lambda: session.statuses)
    session.open("hello", uri="file:///tmp/a.txt", language="plaintext")
    await session.inline("file:///tmp/a.txt", 0, 5)
    assert session.journal("start") == []
    session.open(SOURCE)
    await session.until(lambda: session.journal("start"))


# Inline completion


async def test_an_invoked_completion_lists_every_candidate_at_an_empty_range(
    start_session: StartSession,
):
    session = await start_session("--text", "2", "--text", "x + 1")
    items = await session.inline(session.open(SOURCE), 1, 4)
    assert texts(items) == ["2", "x + 1"]
    cursor = types.Position(1, 4)
    assert all(item.range == types.Range(cursor, cursor) for item in items)


async def test_a_completion_has_the_documents_line_endings(start_session: StartSession):
    session = await start_session("--text", "(\n    2,\n)")
    items = await session.inline(session.open(SOURCE.replace("\n", "\r\n")), 1, 4)
    assert texts(items) == ["(\r\n    2,\r\n)"]


async def test_an_item_extends_the_selected_completion_and_replaces_its_range(
    start_session: StartSession,
):
    session = await start_session("--text", "(1)")
    uri = session.open("y = pr\n")
    word = types.Range(types.Position(0, 4), types.Position(0, 6))
    selected = types.SelectedCompletionInfo(word, "print")
    (item,) = await session.inline(uri, 0, 6, selected=selected)
    assert (item.insert_text, item.range) == ("print(1)", word)
    assert session.journal("request")[0]["prefix"] == "y = print"


async def test_untitled_documents_complete(start_session: StartSession):
    session = await start_session("--text", "2")
    uri = session.open("y = ", uri="untitled:Untitled-1")
    assert texts(await session.inline(uri, 0, 4)) == ["2"]


async def test_a_document_that_is_not_open_gets_nothing(start_session: StartSession):
    session = await start_session("--text", "2")
    # The settings, once they have arrived, report a status of their own.
    await session.until(lambda: session.statuses)
    assert await session.inline(Path(__file__).as_uri(), 0, 0) == []
    assert session.statuses[-1].message == "the editor has not opened this document"


async def test_typing_into_a_suggestion_keeps_it_without_asking_again(start_session: StartSession):
    session = await start_session("--text", "max(x, 3)")
    uri = session.open(SOURCE)
    await session.inline(uri, 1, 4)
    session.edit(uri, (1, 4), (1, 4), "max")
    assert texts(await session.inline(uri, 1, 7, automatic=True)) == ["(x, 3)"]
    assert len(session.journal("request")) == 1


READS_OTHERS = {"context": {"openFiles": True}, "debounceMs": 0}


async def test_other_open_documents_are_read_where_the_user_allows_it(start_session: StartSession):
    session = await start_session("--text", "z", settings=READS_OTHERS)
    session.open("def peel(apple):\n    return apple\n", uri="file:///tmp/fruit.py")
    session.open("apple = 'secret'\n", uri="file:///tmp/secrets/key.py")
    uri = session.open("apple = ")
    await session.inline(uri, 0, 8)
    (request,) = session.journal("request")
    assert request["prefix"] == "# fruit.py\ndef peel(apple):\n    return apple\n\n# a.py\napple = "


async def test_a_closed_document_is_read_no_more(start_session: StartSession):
    session = await start_session("--text", "z", settings=READS_OTHERS)
    fruit = session.open("def peel(apple):\n    return apple\n", uri="file:///tmp/fruit.py")
    uri = session.open("apple = ")
    await session.inline(uri, 0, 8)
    session.close(fruit)
    session.edit(uri, (0, 0), (0, 0), "b")
    await session.inline(uri, 0, 9)
    assert [request["prefix"] for request in session.journal("request")] == [
        "# fruit.py\ndef peel(apple):\n    return apple\n\n# a.py\napple = ",
        "bapple = ",
    ]


async def test_what_was_edited_last_is_read_first(start_session: StartSession):
    settings = {"context": {"openFiles": True, "prefixTokens": 16}, "debounceMs": 0}
    session = await start_session("--text", "z", settings=settings)
    one = session.open("apple = 10\n", uri="file:///tmp/one.py")
    two = session.open("apple = 20\n", uri="file:///tmp/two.py")
    uri = session.open("apple")
    session.edit(one, (0, 9), (0, 9), "1")
    await session.inline(uri, 0, 5)
    session.close(uri)
    session.edit(two, (0, 9), (0, 9), "2")
    session.close(one)
    session.open("apple = 10\n", uri="file:///tmp/one.py")  # its edits are forgotten
    session.open("apple")
    await session.inline(uri, 0, 5)
    first, second = (request["prefix"] for request in session.journal("request"))
    assert first == "# one.py\napple = 110\n\n# a.py\napple"
    assert second == "# two.py\napple = 220\n\n# a.py\napple"


async def test_other_open_documents_are_left_alone_by_default(start_session: StartSession):
    session = await start_session("--text", "z", settings={"debounceMs": 0})
    session.open("def peel(apple):\n    return apple\n", uri="file:///tmp/fruit.py")
    await session.inline(session.open("apple = "), 0, 8)
    (request,) = session.journal("request")
    assert request["prefix"] == "apple = "


async def test_a_client_that_wants_to_know_is_told_how_each_answer_came_about(
    start_session: StartSession,
):
    settings = {"languages": {"*": True, "go": False}}
    session = await start_session("--text", "2", answers=True, settings=settings)
    await session.inline(session.open(SOURCE), 1, 4)
    await session.inline(session.open("x", uri="file:///tmp/a.go", language="go"), 0, 1)
    chosen, nothing = session.answers
    assert [(s.confidence, s.newSyntaxErrors) for s in chosen.suggestions] == [(0.9, 0)]
    assert (chosen.kind, chosen.reason, chosen.engineMs) == ("normal", None, 1.0)
    assert nothing.suggestions == []
    assert (nothing.kind, nothing.reason) == ("inactive", "disabled for go")
    assert nothing.engineMs is None
    assert chosen.id != nothing.id


async def test_a_client_that_does_not_ask_is_told_nothing_of_its_answers(
    start_session: StartSession,
):
    session = await start_session("--text", "2")
    await session.inline(session.open(SOURCE), 1, 4)
    assert session.answers == []


# Cancelling and superseding


async def test_cancelling_the_request_cancels_it_in_the_engine(start_session: StartSession):
    patient = {"deadlineMs": {"manual": 60_000}}
    session = await start_session("--text", "2", "--delay-s", "60", settings=patient)
    uri = session.open(SOURCE)
    await session.until(lambda: session.journal("start"))
    answer = session.protocol.send_request(
        types.TEXT_DOCUMENT_INLINE_COMPLETION, session.inline_params(uri, 1, 4), msg_id="mine"
    )
    await session.until(lambda: session.journal("request"))
    session.cancel_request(types.CancelParams(id="mine"))
    with pytest.raises(JsonRpcRequestCancelled):
        await asyncio.wait_for(asyncio.wrap_future(answer), TIMEOUT_S)
    await session.until(lambda: session.journal("cancelled"))


async def test_a_newer_request_ends_the_older_one_with_an_empty_answer(
    start_session: StartSession,
):
    session = await start_session("--text", "2", "--delay-s", "0.5")
    uri = session.open(SOURCE)
    older = asyncio.create_task(session.inline(uri, 1, 4))
    await session.until(lambda: session.journal("request"))
    assert texts(await session.inline(uri, 1, 3)) == ["2"]
    assert await older == []
    assert len(session.journal("cancelled")) == 1


async def test_an_answer_to_a_document_that_has_changed_since_is_dropped(
    start_session: StartSession,
):
    session = await start_session("--text", "2", "--delay-s", "0.3")
    uri = session.open(SOURCE)
    answer = asyncio.create_task(session.inline(uri, 1, 4))
    await session.until(lambda: session.journal("request"))
    session.edit(uri, (0, 4), (0, 5), "7")
    assert await answer == []


# Loading and failing


async def test_while_the_model_loads_the_answer_is_empty_and_the_status_says_why(
    start_session: StartSession,
):
    quick = {"deadlineMs": {"auto": 50, "manual": 50}}
    session = await start_session("--text", "2", "--loading-s", "1", settings=quick)
    uri = session.open(SOURCE)
    assert await session.inline(uri, 1, 4) == []
    assert session.statuses[-1].busy is True
    await session.until(lambda: "loading the model" in session.statuses[-1].message)
    await session.until(lambda: session.statuses[-1].message == "ready")
    assert texts(await session.inline(uri, 1, 4)) == ["2"]


async def test_a_completion_asked_for_while_the_model_loads_waits_for_it(
    start_session: StartSession,
):
    patient = {"deadlineMs": {"auto": 10_000, "manual": 10_000}}
    session = await start_session("--text", "2", "--loading-s", "0.4", settings=patient)
    assert texts(await session.inline(session.open(SOURCE), 1, 4)) == ["2"]


async def test_loading_shows_as_progress_that_begins_rises_and_ends(start_session: StartSession):
    session = await start_session("--loading-s", "0.4")
    session.open(SOURCE)
    await session.until(lambda: session.statuses and session.statuses[-1].message == "ready")
    await session.until(lambda: _kinds(session)[-1:] == ["end"])
    (reports,) = session.progress_reports.values()
    percentages = [r.percentage for r in reports if getattr(r, "percentage", None) is not None]
    assert percentages == sorted(percentages) != []
    assert _kinds(session)[0] == "begin"


def _kinds(session: Any) -> list[str]:
    return [report.kind for reports in session.progress_reports.values() for report in reports]


async def test_a_client_without_progress_is_sent_none(start_session: StartSession):
    session = await start_session("--loading-s", "0.2", progress=False)
    session.open(SOURCE)
    await session.until(lambda: session.statuses and session.statuses[-1].message == "ready")
    assert session.progress_reports == {}


async def test_an_engine_that_cannot_start_is_an_error_in_the_status_and_no_popup(
    start_session: StartSession,
):
    session = await start_session("--failure", "no checkpoint in /nowhere")
    uri = session.open(SOURCE)
    assert await session.inline(uri, 1, 4, automatic=True) == []
    await session.until(lambda: session.statuses[-1].kind == "error")
    assert session.statuses[-1].message == "no checkpoint in /nowhere"
    assert session.messages == []


async def test_an_unforeseen_error_is_logged_and_the_server_goes_on(
    start_session: StartSession, capfd: pytest.CaptureFixture[str]
):
    session = await start_session("--fault", "the roof is on fire")
    uri = session.open("secret_word = \n")
    assert await session.inline(uri, 0, 14) == []
    await session.until(lambda: session.statuses[-1].kind == "error")
    assert await session.inline(uri, 0, 13) == []
    assert session.messages == []
    await asyncio.wait_for(session.shutdown_session(), TIMEOUT_S)
    log = capfd.readouterr().err
    assert "the roof is on fire" in log
    assert "secret_word" not in log


async def test_what_is_printed_to_stdout_does_not_reach_the_client(start_session: StartSession):
    session = await start_session("--text", "2", "--print", "Content-Length: 5\r\n\r\nhello")
    assert texts(await session.inline(session.open(SOURCE), 1, 4)) == ["2"]


# Settings


async def test_settings_of_the_wrong_type_are_shown_once_and_the_server_goes_on(
    start_session: StartSession,
):
    session = await start_session("--text", "2", settings={"maxNewTokens": "many"})
    uri = session.open(SOURCE)
    assert texts(await session.inline(uri, 1, 4)) == ["2"]
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))
    assert texts(await session.inline(uri, 1, 3)) == ["2"]
    (message,) = session.messages
    assert message.type == types.MessageType.Warning
    assert "maxNewTokens" in message.message


async def test_changed_settings_are_pulled_again(start_session: StartSession):
    session = await start_session("--text", "2", settings={"enabled": False})
    uri = session.open(SOURCE)
    assert await session.inline(uri, 1, 4) == []
    assert (session.statuses[-1].kind, session.statuses[-1].message) == ("inactive", "disabled")
    session.set_configuration({"mezzotint": {"enabled": True}})
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))
    await session.until(lambda: session.statuses[-1].kind == "normal")
    assert texts(await session.inline(uri, 1, 4)) == ["2"]


async def test_initialization_options_count_where_the_client_has_no_settings(
    start_session: StartSession,
):
    options = {"enabled": False}
    for configuration in (True, False):
        session = await start_session(
            "--text", "2", initialization_options=options, configuration=configuration
        )
        assert await session.inline(session.open(SOURCE), 1, 4) == []
        assert session.statuses[-1].message == "disabled"


async def test_pushed_settings_count_where_the_client_cannot_be_asked(
    start_session: StartSession,
):
    session = await start_session("--text", "2", configuration=False)
    session.workspace_did_change_configuration(
        types.DidChangeConfigurationParams({"mezzotint": {"enabled": False}})
    )
    await session.until(lambda: session.statuses and session.statuses[-1].message == "disabled")


async def test_another_model_setting_replaces_the_engine(start_session: StartSession):
    patient = {"deadlineMs": {"manual": 10_000}}
    session = await start_session("--text", "2", "--loading-s", "0.5", settings=patient)
    session.open(SOURCE)
    await session.until(lambda: _kinds(session))
    session.set_configuration({"mezzotint": {**patient, "model": {"device": "cpu"}}})
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))
    await session.until(lambda: len(session.journal("engine")) == 2)
    assert texts(await session.inline("file:///tmp/a.py", 1, 4)) == ["2"]  # by either of them
    await session.until(lambda: session.journal("closed"))
    assert len(session.journal("start")) == 2


# The completion list


async def test_a_list_item_replaces_the_word_and_sorts_low(start_session: StartSession):
    session = await start_session("--text", "nt(1)", inline=False, encoding="utf-16")
    uri = session.open("😀 = pri\n")
    params = types.CompletionParams(types.TextDocumentIdentifier(uri), types.Position(0, 8))
    result = await asyncio.wait_for(session.text_document_completion_async(params), TIMEOUT_S)
    assert isinstance(result, types.CompletionList)
    (item,) = result.items
    word = types.Range(types.Position(0, 5), types.Position(0, 8))
    assert item.text_edit == types.TextEdit(word, "print(1)")
    assert (item.label, item.sort_text) == ("print(1)", "~00")
    assert result.is_incomplete is True


# Leaving


async def test_shutdown_and_exit_end_the_process_with_zero(start_session: StartSession):
    session = await start_session("--text", "2")
    session.open(SOURCE)
    await session.until(lambda: session.journal("start"))
    await asyncio.wait_for(session.shutdown_session(), TIMEOUT_S)
    assert session._server is not None
    assert session._server.returncode == 0
    assert session.journal("closed")


def _serve(journal: Path, **how: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "fake_server.py"), "--journal", str(journal)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **how)


def _message(method: str, params: object, **fields: object) -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **fields})
    return f"Content-Length: {len(body)}\r\n\r\n{body}".encode()


def _answers(output: bytes) -> dict[object, Any]:
    """The responses among the messages of `output`, by their request's id."""
    bodies = [json.loads(part) for part in re.findall(rb"\r\n\r\n(\{.*?\})(?=Content-|$)", output)]
    return {body["id"]: body for body in bodies if "id" in body and "method" not in body}


def test_a_request_that_cannot_be_read_is_answered_with_an_error(tmp_path: Path):
    # The trigger kind of a client that forwards VS Code's own enum, which counts from 0.
    malformed = {
        "context": {"triggerKind": 0},
        "textDocument": {"uri": "file:///a.py"},
        "position": {"line": 0, "character": 0},
    }
    with _serve(tmp_path / "journal") as server:
        output, _ = server.communicate(
            _message("initialize", {"processId": None, "rootUri": None, "capabilities": {}}, id=1)
            + _message("textDocument/inlineCompletion", malformed, id=2)
            + _message("shutdown", None, id=3)
            + _message("exit", None),
            timeout=TIMEOUT_S,
        )
    answers = _answers(output)
    assert answers[2]["error"]["code"] == -32602
    assert answers[3]["result"] is None
    assert server.returncode == 0


def test_exit_without_shutdown_ends_the_process_with_one(tmp_path: Path):
    with _serve(tmp_path / "journal") as server:
        initialize = {"processId": None, "rootUri": None, "capabilities": {}}
        server.communicate(
            _message("initialize", initialize, id=1) + _message("exit", None), timeout=TIMEOUT_S
        )
    assert server.returncode == 1


def test_a_closed_stdin_ends_the_process(tmp_path: Path):
    with _serve(tmp_path / "journal") as server:
        server.communicate(b"", timeout=TIMEOUT_S)
    assert server.returncode == 1


def test_the_server_exits_when_the_editor_is_gone(tmp_path: Path):
    editor = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with editor, _serve(tmp_path / "journal") as server:
        initialize = {"processId": editor.pid, "rootUri": None, "capabilities": {}}
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(_message("initialize", initialize, id=1))
        server.stdin.write(_message("initialized", {}))
        server.stdin.flush()
        assert server.stdout.readline().startswith(b"Content-Length")
        assert process_exists(editor.pid)
        editor.kill()
        editor.wait()
        # stdin stays open: some other process of the editor's may hold it.
        assert server.wait(TIMEOUT_S) == 1


def test_a_process_exists_until_it_is_reaped():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(TIMEOUT_S)
    assert not process_exists(child.pid)
    assert process_exists(os.getpid())
