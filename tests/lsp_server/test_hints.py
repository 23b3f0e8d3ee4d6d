"""The hints at holes: which, where, when they come and go, and the quick fix they bring."""

from __future__ import annotations

import asyncio
import io
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import StartSession
from lsprotocol import types
from pygls.workspace import PositionCodec

from lsp_server.ask.documents import LspDocument
from lsp_server.ask.hints import HoleHints, hints_in
from lsp_server.code_actions import on_code_action
from lsp_server.settings import Settings, parse_settings

EVERY_MARKER = """\
def f():
    pass  # hole
a = '😀' + <FILL>
def g(): ...
# TODO: sum
"""


def shown(params: types.PublishDiagnosticsParams) -> list[tuple[int, int, int]]:
    """Line, start and end of each hint."""
    spans = [hint.range for hint in params.diagnostics]
    assert all(span.start.line == span.end.line for span in spans)
    return [(span.start.line, span.start.character, span.end.character) for span in spans]


def hints(text: str, *, every: bool, encoding: str = "utf-16") -> list[types.Diagnostic]:
    lines = [*io.StringIO(text, newline=""), ""]
    codec = PositionCodec(types.PositionEncodingKind(encoding))
    return hints_in(text, lines, codec, "python", every=every)


def test_a_hints_code_is_its_marker_and_only_unmistakable_ones_are_shown_unless_all_are_wanted():
    assert [hint.code for hint in hints(EVERY_MARKER, every=False)] == ["pass  # hole", "<FILL>"]
    every = hints(EVERY_MARKER, every=True)
    assert [hint.code for hint in every] == ["pass  # hole", "<FILL>", "...", "TODO"]
    assert {hint.source for hint in every} == {"mezzotint"}
    assert {hint.severity for hint in every} == {types.DiagnosticSeverity.Hint}


@pytest.mark.parametrize(("encoding", "column"), [("utf-8", 13), ("utf-16", 11), ("utf-32", 10)])
def test_a_hint_lies_under_its_marker_in_the_clients_columns(encoding: str, column: int):
    hint = hints(EVERY_MARKER, every=False, encoding=encoding)[1]
    assert (hint.range.start.line, hint.range.start.character) == (2, column)
    assert (hint.range.end.line, hint.range.end.character) == (2, column + len("<FILL>"))


@pytest.mark.parametrize("eol", ["\n", "\r\n", "\r"])
def test_lines_end_where_the_protocol_says(eol: str):
    (hint,) = hints(f"x\f{eol}y\u2028<FILL>{eol}", every=False)
    assert (hint.range.start.line, hint.range.start.character) == (1, 2)


async def test_hints_follow_the_document_and_carry_its_version(start_session: StartSession):
    session = await start_session()
    uri = session.open("a = <FILL>\nb = ...\n")
    await session.until(lambda: session.hints)
    assert (session.hints[0].uri, session.hints[0].version) == (uri, 1)
    assert shown(session.hints[0]) == [(0, 4, 10)]

    session.edit(uri, (0, 0), (0, 0), "\n")
    session.edit(uri, (1, 0), (1, 0), "c")
    await session.until(lambda: session.hints[-1].version == 3)
    assert shown(session.hints[-1]) == [(1, 5, 11)]

    session.edit(uri, (1, 5), (1, 11), "1")
    await session.until(lambda: session.hints[-1].version == 4)
    assert shown(session.hints[-1]) == []


async def test_a_closed_document_has_no_hints(start_session: StartSession):
    session = await start_session()
    uri = session.open("a = <FILL>\n")
    await session.until(lambda: session.hints)
    session.edit(uri, (0, 0), (0, 0), "\n")  # nothing may come of it any more
    session.close(uri)
    await session.until(lambda: shown(session.hints[-1]) == [])
    told = len(session.hints)
    other = session.open("<FILL>\n", uri="file:///tmp/b.py")
    await session.until(lambda: len(session.hints) > told)
    assert [params.uri for params in session.hints[told:]] == [other]


@pytest.mark.parametrize(
    ("settings", "path", "text"),
    [
        ({"holeHints": "off"}, "x.py", "<FILL>\n"),
        ({"enabled": False}, "x.py", "<FILL>\n"),
        ({"languages": {"python": False}}, "x.py", "<FILL>\n"),
        ({}, "secrets/x.py", "<FILL>\n"),
        ({"maxFileKB": 1}, "x.py", "<FILL>\n" + "#" * 2000),
        ({}, "x.py", "<FILL>\n\0"),
        ({}, "x.py", "def f(): ...\n# TODO\n"),
    ],
)
async def test_there_is_no_hint_where_nothing_would_be_filled_or_none_is_wanted(
    settings: dict[str, Any], path: str, text: str
):
    published: list[types.PublishDiagnosticsParams] = []
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Any) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    def document(path: str, text: str) -> LspDocument:
        return LspDocument(f"file:///tmp/{path}", text, 1, "python")

    hints = HoleHints(published.append, spawn)
    hints.refresh(document(path, text), parse_settings(settings)[0])
    hints.refresh(document("control.py", "<FILL>"), Settings())
    await asyncio.gather(*tasks)
    assert [params.uri for params in published] == ["file:///tmp/control.py"]


async def test_changed_settings_change_the_hints_at_once(start_session: StartSession):
    session = await start_session(settings={"holeHints": "all"})
    uri = session.open("def f(): ...\n")
    await session.until(lambda: session.hints)
    assert shown(session.hints[0]) == [(0, 9, 12)]
    session.set_configuration({"mezzotint": {"languages": {"python": False}}})
    session.workspace_did_change_configuration(types.DidChangeConfigurationParams(None))
    await session.until(lambda: len(session.hints) == 2)
    assert (session.hints[1].uri, shown(session.hints[1])) == (uri, [])


def quick_fixes(text: str, hint: types.Diagnostic) -> list[types.CodeAction]:
    """What a server offers for a hint in a document of its own."""
    uri = "file:///tmp/a.py"
    server: Any = SimpleNamespace(
        document=lambda _: LspDocument(uri, text, 7, "python"),
        completes=lambda document: True,
    )
    context = types.CodeActionContext([hint], only=[types.CodeActionKind.QuickFix.value])
    params = types.CodeActionParams(types.TextDocumentIdentifier(uri), hint.range, context)
    return on_code_action(server, params)


TWO = "a = <FILL>\nb = <FILL>\n"


def test_a_hints_quick_fix_is_to_fill_the_hole_at_it():
    hint = hints(TWO, every=False)[1]
    (fix,) = quick_fixes(TWO, hint)
    assert (fix.title, fix.kind, fix.diagnostics) == ("Fill this hole", "quickfix", [hint])
    assert fix.command is not None
    assert fix.command.command == "mezzotint.fill.holes"
    span = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": 10}}
    assert fix.command.arguments == [{"uri": "file:///tmp/a.py", "version": 7, "range": span}]


def test_a_hint_whose_hole_is_gone_or_is_another_servers_has_no_quick_fix():
    (hint,) = hints("a = <FILL>\n", every=False)
    theirs = types.Diagnostic(hint.range, "unused", source="pyflakes")
    assert quick_fixes("a = <FILL>\n", theirs) == []
    assert quick_fixes("a = 1234567\n", hint) == []


async def test_one_of_several_holes_can_be_filled_alone(start_session: StartSession):
    session = await start_session("--text", "1")
    uri = session.open(TWO)
    span = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": 10}}
    result = await session.run("mezzotint.fill.holes", {"uri": uri, "version": 1, "range": span})
    assert result.applied is True
    (params,) = session.edits
    assert params.edit.document_changes is not None
    (change,) = params.edit.document_changes
    assert isinstance(change, types.TextDocumentEdit)
    (edit,) = change.edits
    assert (edit.range.start, edit.new_text) == (types.Position(1, 4), "1")


async def test_the_cells_of_a_notebook_have_hints_of_their_own(start_session: StartSession):
    session = await start_session(notebooks=True)
    cell = "notebook-cell:/tmp/n.ipynb#1"
    notebook = types.NotebookDocument(
        "file:///tmp/n.ipynb", "jupyter", 1, [types.NotebookCell(types.NotebookCellKind.Code, cell)]
    )
    text = types.TextDocumentItem(cell, "python", 1, "a = <FILL>\n")
    session.notebook_document_did_open(types.DidOpenNotebookDocumentParams(notebook, [text]))
    await session.until(lambda: session.hints)
    assert (session.hints[0].uri, shown(session.hints[0])) == (cell, [(0, 4, 10)])

    version = types.VersionedNotebookDocumentIdentifier(2, notebook.uri)
    at_start = types.Range(types.Position(0, 0), types.Position(0, 0))
    typed = types.NotebookDocumentCellContentChanges(
        types.VersionedTextDocumentIdentifier(2, cell),
        [types.TextDocumentContentChangePartial(at_start, "\n")],
    )
    change = types.NotebookDocumentChangeEvent(
        cells=types.NotebookDocumentCellChanges(text_content=[typed])
    )
    session.notebook_document_did_change(types.DidChangeNotebookDocumentParams(version, change))
    await session.until(lambda: len(session.hints) == 2)
    assert (session.hints[1].version, shown(session.hints[1])) == (2, [(1, 4, 10)])

    session.notebook_document_did_close(
        types.DidCloseNotebookDocumentParams(
            types.NotebookDocumentIdentifier(notebook.uri), [types.TextDocumentIdentifier(cell)]
        )
    )
    await session.until(lambda: len(session.hints) == 3)
    assert shown(session.hints[2]) == []
