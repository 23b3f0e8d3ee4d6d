"""Documents that trip completion servers: right text at the right place, or nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from conftest import TIMEOUT_S, StartSession
from lsprotocol import types

CELL = "vscode-notebook-cell:/home/me/a.ipynb#W0sZm"


def texts(items: list[types.InlineCompletionItem]) -> list[Any]:
    return [item.insert_text for item in items]


@pytest.mark.parametrize(("encoding", "column"), [("utf-8", 26), ("utf-16", 17), ("utf-32", 14)])
async def test_emoji_and_combining_characters_before_the_cursor(
    start_session: StartSession, encoding: str, column: int
):
    session = await start_session("--text", "z", encoding=encoding)
    uri = session.open("e\u0301 = '👩‍💻🏽' + \n")
    (item,) = await session.inline(uri, 0, column)
    (request,) = session.journal("request")
    assert request["prefix"] == "e\u0301 = '👩‍💻🏽' + "
    assert item.range == types.Range(types.Position(0, column), types.Position(0, column))


async def test_a_position_inside_a_surrogate_pair_means_its_end(start_session: StartSession):
    session = await start_session("--text", "z")
    (item,) = await session.inline(session.open("x = '😀\n"), 0, 6)
    assert item.range is not None
    assert item.range.start == types.Position(0, 7)
    assert session.journal("request")[0]["prefix"] == "x = '😀"


async def test_mixed_line_ends_count_as_lines_and_the_answer_has_the_documents(
    start_session: StartSession,
):
    session = await start_session("--text", "f(\n    1,\n)")
    uri = session.open("a = 1\r\nb = 2\nc = 3\rd = \r\n")
    assert texts(await session.inline(uri, 3, 4)) == ["f(\r\n    1,\r\n)"]
    assert session.journal("request")[0]["prefix"] == "a = 1\nb = 2\nc = 3\nd = "


async def test_a_form_feed_ends_no_line(start_session: StartSession):
    session = await start_session("--text", "2")
    uri = session.open("a = 1\n\f\nb\u2028 = \nc = 3\n")
    await session.inline(uri, 2, 5)
    assert session.journal("request")[0]["prefix"] == "a = 1\n\f\nb\u2028 = "


async def test_a_byte_order_mark_counts_as_a_character_and_the_model_never_sees_it(
    start_session: StartSession,
):
    session = await start_session("--text", "2")
    uri = session.open("\ufeffx = \n")
    (item,) = await session.inline(uri, 0, 5)
    assert item.range is not None
    assert item.range.start == types.Position(0, 5)
    assert session.journal("request")[0]["prefix"] == "x = "


async def test_tabs_are_one_unit_each_and_stay(start_session: StartSession):
    session = await start_session("--text", "if a {\n        b()\n    }")
    uri = session.open(
        "package a\n\nfunc f() {\n\tx := 1\n\t\n}\n", uri="file:///tmp/a.go", language="go"
    )
    assert texts(await session.inline(uri, 4, 1)) == ["if a {\n\t\tb()\n\t}"]


async def test_a_position_past_the_end_means_the_end(start_session: StartSession):
    session = await start_session("--text", "2")
    uri = session.open("x = 1\ny = ")
    (item,) = await session.inline(uri, 99, 99)
    assert item.range is not None
    assert item.range.start == types.Position(1, 4)


async def test_a_file_of_eight_thousand_lines_completes_in_its_middle(
    start_session: StartSession,
):
    session = await start_session("--text", "4000", settings={"maxFileKB": 1024})
    lines = [f"value_{i} = compute({i})" for i in range(8000)]
    lines[4000] = "value_4000 = "
    (item,) = await session.inline(session.open("\n".join(lines)), 4000, 13)
    assert (item.insert_text, item.range.start if item.range else None) == (
        "4000",
        types.Position(4000, 13),
    )
    (request,) = session.journal("request")
    assert request["prefix"].endswith("value_3999 = compute(3999)\nvalue_4000 = ")
    assert len(request["prefix"]) < 10_000


async def test_a_file_that_is_too_large_or_binary_gets_nothing_and_a_reason(
    start_session: StartSession,
):
    session = await start_session("--text", "2", settings={"maxFileKB": 1})
    assert await session.inline(session.open("x = \n" + "#" * 2000), 0, 4) == []
    assert "maxFileKB" in session.statuses[-1].message
    binary = session.open("x = \0\n", uri="file:///tmp/b.py")
    assert await session.inline(binary, 0, 4) == []
    assert "binary" in session.statuses[-1].message
    assert session.journal("request") == []


@pytest.mark.parametrize(
    "uri",
    [
        "file:///home/me/.env.local",
        "file:///home/me/%2Eenv",
        "file:///home/me/secrets/a.py",
        "untitled:/home/me/.env",
        "vscode-notebook-cell:/home/me/secrets/a.ipynb#W0",
        "vscode-remote://ssh-remote%2Bhost/home/me/.ssh/config",
        "zipfile://backup.zip::.env",
    ],
)
async def test_what_is_excluded_reaches_no_engine_under_any_scheme(
    start_session: StartSession, uri: str
):
    session = await start_session("--text", "2")
    session.open("KEY = \n", uri=uri)
    assert await session.inline(uri, 0, 6) == []
    result = await session.run(
        "mezzotint.fill.here", {"uri": uri, "position": {"line": 0, "character": 6}}
    )
    assert result.reason == "excluded file"
    assert session.journal("start") == []
    assert session.journal("request") == []


async def test_a_snippet_that_is_selected_is_left_alone(start_session: StartSession):
    session = await start_session("--text", "(1)")
    uri = session.open("y = fo\n")
    word = types.Range(types.Position(0, 4), types.Position(0, 6))
    selected = types.SelectedCompletionInfo(word, "for ${1:x} in $2:")
    assert await session.inline(uri, 0, 6, selected=selected) == []
    assert session.journal("request") == []


async def test_a_document_closed_while_a_completion_runs_gets_nothing(
    start_session: StartSession,
):
    session = await start_session("--text", "2", "--delay-s", "0.3")
    uri = session.open("x = \n")
    answer = asyncio.create_task(session.inline(uri, 0, 4))
    await session.until(lambda: session.journal("request"))
    session.close(uri)
    session.open("y = \n")
    assert await answer == []


async def test_what_changes_on_disk_is_not_read_before_the_editor_says_so(
    start_session: StartSession, tmp_path: Path
):
    session = await start_session("--text", "z")
    file = tmp_path / "a.py"
    file.write_text("x = \n")
    uri = session.open("x = \n", uri=file.as_uri())
    file.write_text("# another program was here\ny = \n")
    await session.inline(uri, 0, 4)
    session.edit(uri, (0, 0), (1, 0), file.read_text())  # the editor has reloaded it
    await session.inline(uri, 1, 4)
    assert [request["prefix"] for request in session.journal("request")] == [
        "x = ",
        "# another program was here\ny = ",
    ]


async def test_a_notebooks_cell_completes_like_a_document(start_session: StartSession):
    session = await start_session("--text", "2", notebooks=True)
    offered = session.initialize_result.capabilities.notebook_document_sync
    assert offered is not None
    cell = types.TextDocumentItem(CELL, "python", 1, "x = \n")
    session.notebook_document_did_open(
        types.DidOpenNotebookDocumentParams(
            types.NotebookDocument(
                "file:///home/me/a.ipynb",
                "jupyter-notebook",
                1,
                [types.NotebookCell(types.NotebookCellKind.Code, CELL)],
            ),
            [cell],
        )
    )
    assert texts(await session.inline(CELL, 0, 4)) == ["2"]
    text_edit = types.NotebookDocumentCellContentChanges(
        types.VersionedTextDocumentIdentifier(2, CELL),
        [
            types.TextDocumentContentChangePartial(
                types.Range(types.Position(0, 0), types.Position(0, 0)), "😀\n"
            )
        ],
    )
    session.notebook_document_did_change(
        types.DidChangeNotebookDocumentParams(
            types.VersionedNotebookDocumentIdentifier(2, "file:///home/me/a.ipynb"),
            types.NotebookDocumentChangeEvent(
                cells=types.NotebookDocumentCellChanges(text_content=[text_edit])
            ),
        )
    )
    (item,) = await asyncio.wait_for(session.inline(CELL, 1, 4), TIMEOUT_S)
    assert item.range is not None
    assert item.range.start == types.Position(1, 4)
    assert session.journal("request")[-1]["prefix"] == "😀\nx = "
