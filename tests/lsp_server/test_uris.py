"""Documents by their URIs: every handler finds the one that is meant, however its URI is quoted."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from wire import CONFIGURATION, Wire, at, items

URIS = [
    "file:///tmp/plain.py",
    "file:///c%3A/Users/me/a.py",
    "file:///c:/Users/me/a.py",
    "file:///tmp/my%20project/a.py",
    "file:///tmp/%C3%A9t%C3%A9/%E8%AA%9E.py",
    "file:///tmp/100%25.py",
    "file:///tmp/%2525.py",
    "file:///tmp/a%2Bb%20%23%3F.py",
    "file://server/share%24/a%20b.py",
    "untitled:my%20file.py",
    "vscode-notebook-cell:/tmp/n%20b.ipynb#W0sZmlsZQ%3D%3D",
    "vscode-remote://ssh-remote%2Bhost/home/me/a.py",
    "zipfile:///tmp/a%20b.zip%3A%3Asrc/a.py",
]
OTHER = "file:///tmp/other%20folder/b.py"
TEXT = "value = 1\nx = <FILL>\ny = \n"
READS_OTHERS = {"context": {"openFiles": True}, "debounceMs": 0}


async def started(*texts: str, **capabilities: Any) -> Wire:
    wire = Wire(*texts)
    wire.answers[CONFIGURATION] = {"result": [READS_OTHERS]}
    return await wire.start(workspace={"configuration": True}, **capabilities)


@pytest.mark.parametrize("uri", URIS)
async def test_every_request_finds_the_document(uri: str):
    wire = await started("2")
    wire.open(TEXT, uri)
    assert items(await wire.answer(wire.inline(2, 4, uri))) == ["2"]
    await wire.until(lambda: wire.hints(uri))
    actions = (await wire.answer(wire.code_actions(1, uri, *wire.hints(uri))))["result"]
    every = "Fill every hole in this file (1)"
    assert [action["title"] for action in actions] == ["Fill this hole", "Fill here", every]
    for action in actions:
        command = action["command"]["command"]
        (argument,) = action["command"]["arguments"]
        result = (await wire.answer(wire.run(command, **argument | {"apply": False})))["result"]
        assert len(result["candidates"]) == 1, command
    span = {"start": at(0, 8), "end": at(0, 9)}
    selection = wire.run("mezzotint.fill.selection", uri=uri, range=span)
    assert (await wire.answer(selection))["result"]["applied"] is True
    (applied,) = [m["params"] for m in wire.sent if m.get("method") == "workspace/applyEdit"]
    assert list(applied["edit"]["changes"]) == [uri]  # as the client has it


@pytest.mark.parametrize("uri", URIS)
async def test_a_list_of_completions_finds_the_document(uri: str):
    wire = await started("2", textDocument={"completion": {}})
    wire.open(TEXT, uri)
    where = {"textDocument": {"uri": uri}, "position": at(2, 4)}
    answer = await wire.answer(wire.ask("textDocument/completion", where))
    assert [item["label"] for item in answer["result"]["items"]] == ["2"]


@pytest.mark.parametrize(
    ("uri", "closed_as"),
    [
        *((uri, uri) for uri in URIS),
        ("file:///c%3A/Users/me/a.py", "file:///c:/Users/me/a.py"),
        ("file:///c:/Users/me/a.py", "file:///c%3A/Users/me/a.py"),
        ("file:///tmp/%C3%A9.py", "file:///tmp/%c3%a9.py"),
        ("file:///tmp/%C3%A9.py", "file:///tmp/é.py"),
        ("vscode-remote://ssh-remote%2Bhost/a.py", "vscode-remote://ssh-remote+host/a.py"),
    ],
)
async def test_a_closed_document_is_forgotten(uri: str, closed_as: str):
    wire = await started("2")
    wire.open(TEXT, uri)
    wire.open("value = \n", OTHER)
    edited = {"range": {"start": at(0, 0), "end": at(0, 0)}, "text": "# new\n"}
    wire.change(edited, uri=uri)
    await wire.until(lambda: wire.hints(uri))
    await wire.answer(wire.inline(0, 8, OTHER))
    assert "value = 1" in wire.completer.requests[-1].prefix  # it is read
    name = unquote(uri)
    assert wire.server._edits.lines_of(name) == (1,)

    wire.notify("textDocument/didClose", {"textDocument": {"uri": closed_as}})
    assert wire.server.document(uri) is None
    assert wire.server._edits.lines_of(name) == ()
    assert wire.hints(uri) == []
    assert (await wire.answer(wire.code_actions(1, uri)))["result"] == []
    assert items(await wire.answer(wire.inline(2, 4, uri))) == []
    wire.change(edited, uri=OTHER)
    await wire.answer(wire.inline(1, 8, OTHER))
    assert "value = 1" not in wire.completer.requests[-1].prefix


@pytest.mark.parametrize("uri", URIS)
async def test_what_was_edited_last_is_read_first(uri: str):
    """Of two documents that are equally like the one at hand."""
    wire = await started("2")
    wire.open("value = 111\n", "file:///tmp/c%20d.py")
    wire.open("value = 222\n", uri)
    read: list[str] = []
    for last in ("file:///tmp/c%20d.py", uri):
        wire.change({"range": {"start": at(0, 0), "end": at(0, 0)}, "text": ""}, uri=last)
        wire.open("value = \n", OTHER)
        await wire.answer(wire.inline(0, 8, OTHER))
        prefix = wire.completer.requests[-1].prefix
        read.append("111" if prefix.index("111") > prefix.index("222") else "222")
        wire.notify("textDocument/didClose", {"textDocument": {"uri": OTHER}})
        wire.server.forget("file:///tmp/c%20d.py")
    assert read == ["111", "222"]


@pytest.mark.parametrize("uri", ["vscode-notebook-cell:/tmp/a%20b.ipynb#W0sZmlsZQ%3D%3D"])
async def test_cells_are_found_in_every_change_of_their_notebook(uri: str):
    wire = await started("2")
    notebook = "file:///tmp/a%20b.ipynb"
    cell = {"uri": uri, "languageId": "python", "version": 1, "text": TEXT}
    document = {
        "uri": notebook,
        "notebookType": "jupyter-notebook",
        "version": 1,
        "cells": [{"kind": 2, "document": uri}],
    }
    params = {"notebookDocument": document, "cellTextDocuments": [cell]}
    wire.notify("notebookDocument/didOpen", params)
    await wire.until(lambda: wire.hints(uri))
    edit = {"range": {"start": at(0, 0), "end": at(0, 0)}, "text": "# new\n"}
    written = [{"document": {"uri": uri, "version": 2}, "changes": [edit]}]
    change = {"cells": {"textContent": written}}
    document = {"uri": notebook, "version": 2}
    wire.notify("notebookDocument/didChange", {"notebookDocument": document, "change": change})
    await wire.until(lambda: wire.hints(uri)[0]["range"]["start"]["line"] == 2)
    assert wire.server._edits.lines_of(unquote(uri)) == (1,)
    assert items(await wire.answer(wire.inline(3, 4, uri))) == ["2"]

    params = {"notebookDocument": {"uri": notebook}, "cellTextDocuments": [{"uri": uri}]}
    wire.notify("notebookDocument/didClose", params)
    assert wire.hints(uri) == []
    assert wire.server._edits.lines_of(unquote(uri)) == ()
