"""What clients say, and leave unsaid: every request is answered, nothing waits for ever, and server
and client go by the same text. In this process, message by message."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, get_args

import attrs
import pytest
from lsprotocol import types
from wire import APPLY, CONFIGURATION, CREATE, NOTHING, URI, Wire, at, items

from lsp_server import server
from lsp_server.protocol import make_converter

NOTEBOOK, CELL = "file:///tmp/a.ipynb", "vscode-notebook-cell:/tmp/a.ipynb#1"
CUSTOM = {types.CodeActionKind, types.FoldingRangeKind, types.PositionEncodingKind}
PROGRESS = {"window": {"workDoneProgress": True}}


# --- The time for requests --------------------------------------------------------------------

REQUESTS: list[tuple[str, Any]] = [
    ("textDocument/inlineCompletion", {
        "textDocument": {"uri": URI}, "position": at(0, 0), "context": {"triggerKind": 1}}),
    ("workspace/executeCommand", {"command": "mezzotint.statistics"}),
    ("textDocument/codeAction", {
        "textDocument": {"uri": URI}, "range": {"start": at(0, 0), "end": at(0, 0)},
        "context": {"diagnostics": []}}),
    ("shutdown", None),
    ("no/such/request", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "params"), REQUESTS)
async def test_before_initialize_nothing_is_served(method, params):
    wire = Wire()
    assert (await wire.answer(wire.ask(method, params)))["error"]["code"] == -32002
    wire.open("x = ")
    await wire.start()  # none of it has done any harm
    assert wire.server.workspace.text_documents == {}


@pytest.mark.parametrize(("method", "params"), REQUESTS)
async def test_after_shutdown_nothing_is_served(method, params):
    wire = await Wire("2").start()
    number = wire.ask("shutdown")
    while_it_shuts_down = wire.ask(method, params)
    assert (await wire.answer(number)).get("result", NOTHING) is None
    for late in (while_it_shuts_down, wire.ask(method, params)):
        assert (await wire.answer(late))["error"]["code"] == -32600
    wire.open("x = ")
    assert wire.server.workspace.text_documents == {}
    assert wire.protocol.exit_code == 0


async def test_a_second_initialize_is_refused_and_forgets_nothing():
    wire = await Wire("2").start()
    wire.open("x = ")
    hello = {"processId": None, "rootUri": None, "capabilities": {}}
    assert (await wire.answer(wire.ask("initialize", hello)))["error"]["code"] == -32600
    assert items(await wire.answer(wire.inline(0, 4))) == ["2"]


@pytest.mark.parametrize(
    "odd",
    [
        {"trace": "compact"},
        {"capabilities": {"workspace": {"workspaceEdit": {"failureHandling": "later"}}}},
        {"capabilities": {"textDocument": {"hover": {"contentFormat": ["ansi"]}}}},
        {"capabilities": {"textDocument": {"codeAction": {"tagSupport": {"valueSet": [1, 9]}}}}},
        {"capabilities": {"general": {"positionEncodings": ["utf-7", "utf-16"]}}},
    ],
)
async def test_words_that_nobody_knows_are_no_reason_to_refuse_a_client(odd):
    wire = Wire("2")
    hello = {"processId": None, "rootUri": None, "capabilities": {}} | odd
    answer = await wire.answer(wire.ask("initialize", hello))
    assert answer["result"]["capabilities"]["positionEncoding"] == "utf-16"


def enumerations(kind: Any, seen: set[Any]) -> set[type[Enum]]:
    """Those of which a value may be anywhere in a message of this type."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {kind}
    if kind in seen:
        return set()
    seen.add(kind)
    inner = list(get_args(kind))
    if attrs.has(kind):
        inner += [field.type for field in attrs.fields(attrs.resolve_types(kind))]
    return {found for one in inner for found in enumerations(one, seen)}


@pytest.mark.parametrize(
    "enumeration", sorted(enumerations(types.InitializeParams, set()), key=repr)
)
def test_a_client_may_be_newer_than_every_enumeration_of_its_hello(enumeration: type[Enum]):
    unknown = 4711 if issubclass(enumeration, int) else "unheard-of"
    kind: Any = enumeration
    if enumeration in CUSTOM:  # these may have values of one's own
        kind |= str
    assert make_converter().structure(unknown, kind) == unknown


# --- Leaving ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("awaited", "capabilities"),
    [
        (None, {}),  # the engine, by a completion and a fill
        (APPLY, {}),
        (CREATE, PROGRESS),
        (CONFIGURATION, {"workspace": {"configuration": True}}),
        ("client/registerCapability", {
            "workspace": {"didChangeConfiguration": {"dynamicRegistration": True}}}),
    ],
)  # fmt: skip
async def test_shutdown_ends_whatever_waits_for_engine_or_client(awaited, capabilities):
    wire = Wire("2", delay_s=0.0 if awaited else 3600.0)
    wire.answers.pop(awaited, None)
    await wire.start(**capabilities)
    wire.open("x = <FILL>\n")
    running = [wire.run("mezzotint.fill.holes"), wire.inline(0, 4)]
    if awaited:
        await wire.until(lambda: wire.was_asked(awaited))
    else:
        await wire.until(lambda: wire.events.count("request") == 2)
    assert (await wire.answer(wire.ask("shutdown"))).get("result", NOTHING) is None
    for number in running:
        await wire.answer(number)
    assert wire.protocol.exit_code == 0
    if awaited != CONFIGURATION:  # there is no engine without settings
        assert "closed" in wire.events
    if awaited is None:
        await wire.until(lambda: wire.events.count("cancelled") == 2)


# --- Answers of the client ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "applied"),
    [
        ({"result": {"applied": True}}, True),
        ({"result": {"applied": True}, "error": None}, True),
        ({"result": None}, True),  # it would say so, had it not made the edit
        ({"result": {}}, True),
        ({"result": []}, True),  # an empty object, in some languages
        ({}, True),
        ({"result": {"applied": False, "failureReason": "read only"}}, False),
        ({"error": {"code": -32603, "message": "no"}}, False),
        ({"result": "what?"}, False),
        ({"result": 7}, False),
    ],
)
async def test_a_fill_is_answered_whatever_the_client_says_to_its_edit(answer, applied):
    wire = Wire("2")
    wire.answers[APPLY] = answer
    await wire.start()
    wire.open("x = <FILL>\n")
    result = (await wire.answer(wire.run("mezzotint.fill.holes")))["result"]
    assert result["applied"] is applied
    assert (result["reason"] is None) is applied


@pytest.mark.parametrize("answer", [{"result": 7}, {"error": {"code": 1, "message": "no"}}, {}])
async def test_a_fill_goes_on_whatever_the_client_says_to_its_progress(answer):
    wire = Wire("2")
    wire.answers[CREATE] = answer
    await wire.start(**PROGRESS)
    wire.open("x = <FILL>\n")
    assert (await wire.answer(wire.run("mezzotint.fill.holes")))["result"]["applied"] is True


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", [True, False])
@pytest.mark.parametrize("initialized", [{"params": {}}, {"params": None}, {}, None])
async def test_settings_are_there_however_initialized_comes_and_if_it_does_not(
    initialized, configuration
):
    wire = Wire("2")
    wire.answers[CONFIGURATION] = {"result": [{"debounceMs": 0}]}
    hello = {
        "processId": None,
        "rootUri": None,
        "capabilities": {
            "textDocument": {"inlineCompletion": {}},
            "workspace": {"configuration": configuration},
        },
    }
    await wire.answer(wire.ask("initialize", hello))
    if initialized is not None:
        wire.send({"method": "initialized", **initialized})
    wire.open("x = \ny = <FILL>\n")
    assert items(await wire.answer(wire.inline(0, 4))) == ["2"]
    assert (await wire.answer(wire.run("mezzotint.fill.holes")))["result"]["applied"] is True


@pytest.mark.parametrize(
    "answer",
    [
        {"result": None},
        {"result": []},
        {"result": [None]},
        {"result": {}},
        {"result": {"debounceMs": 0}},
        {"result": 7},
        {"result": [7]},
        {},
        {"error": {"code": -32601, "message": "what?"}},
        None,
    ],
)
async def test_there_are_settings_whatever_the_client_says_of_them(
    answer: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "_CONFIGURATION_TIMEOUT_S", 0.05)
    wire = Wire("2")
    if answer is not None:
        wire.answers[CONFIGURATION] = answer
    await wire.start(workspace={"configuration": True})
    wire.open("x = ")
    assert items(await wire.answer(wire.inline(0, 4))) == ["2"]


def typed(wire: Wire) -> None:
    wire.change({"range": {"start": at(0, 0), "end": at(0, 0)}, "text": "# new\n"})


def replaced(wire: Wire) -> None:
    wire.change({"text": "print(<FILL>)\n"})


def reopened(wire: Wire) -> None:
    wire.notify("textDocument/didClose", {"textDocument": {"uri": URI}})
    wire.open("print(<FILL>)\n")


def closed(wire: Wire) -> None:
    wire.notify("textDocument/didClose", {"textDocument": {"uri": URI}})


@pytest.mark.parametrize("happens", [typed, replaced, reopened, closed, None])
@pytest.mark.parametrize("lists", [False, True])
async def test_what_was_asked_of_a_text_before_there_were_settings_is_answered_for_no_other(
    happens: Callable[[Wire], None] | None, lists: bool
):
    wire = Wire("2")
    supported: dict[str, Any] = {"textDocument": {"completion": {}}} if lists else {}
    await wire.start(workspace={"configuration": True}, **supported)
    wire.open("y = <FILL>\nx = \n")
    if lists:
        where = {"textDocument": {"uri": URI}, "position": at(1, 4)}
        completion = wire.ask("textDocument/completion", where)
    else:
        completion = wire.inline(1, 4)
    position = {"position": at(1, 4)}
    fills = [wire.run("mezzotint.fill.holes"), wire.run("mezzotint.fill.here", **position)]
    await wire.until(lambda: wire.was_asked(CONFIGURATION))
    if happens is not None:
        happens(wire)
    (asked,) = [m for m in wire.sent if m.get("method") == CONFIGURATION]
    wire.send({"id": asked["id"], "result": [None]})
    offered = (await wire.answer(completion))["result"]["items"]
    assert len(offered) == (happens is None)
    for number in fills:
        result = (await wire.answer(number))["result"]
        assert len(result["candidates"]) == (happens is None)
        assert result["applied"] is (happens is None)
    assert wire.was_asked(APPLY) is (happens is None)


# --- The same text ----------------------------------------------------------------------------


async def test_null_says_as_much_as_nothing():
    wire = Wire("2")
    wire.answers[APPLY] = {"result": None}
    await wire.start()
    wire.open("x = 1\n")
    wire.change({"range": None, "text": "y = \n"})
    assert wire.document().source == "y = \n"
    here = {"start": at(0, 4), "end": at(0, 99)}
    wire.change({"range": here, "rangeLength": None, "text": "(\n)"}, {"text": "z = "})
    assert wire.document().source == "z = "
    assert items(await wire.answer(wire.inline(0, 4, selectedCompletionInfo=None))) == ["2"]
    wire.notify("workspace/didChangeConfiguration")
    wire.notify("workspace/didChangeConfiguration", {"settings": None})
    assert items(await wire.answer(wire.inline(0, 4))) == ["2"]


async def test_a_broken_change_is_refused_and_the_next_one_counts():
    wire = await Wire("2").start()
    wire.open("x = 1\n")
    wire.change({"range": 7, "text": "nonsense"})
    wire.change({"range": {"start": at(0, 4), "end": at(0, 5)}, "text": "2"})
    assert wire.document().source == "x = 2\n"


def cell(text: str) -> dict[str, Any]:
    return {"uri": CELL, "languageId": "python", "version": 1, "text": text}


async def open_notebook(wire: Wire) -> None:
    document = {
        "uri": NOTEBOOK,
        "notebookType": "jupyter-notebook",
        "version": 1,
        "cells": [{"kind": 2, "document": CELL}],
    }
    params = {"notebookDocument": document, "cellTextDocuments": [cell("x = 1\n")]}
    wire.notify("notebookDocument/didOpen", params)


def change_notebook(wire: Wire, **cells: Any) -> None:
    document = {"uri": NOTEBOOK, "version": 2}
    params = {"notebookDocument": document, "change": {"cells": cells}}
    wire.notify("notebookDocument/didChange", params)


def structure(**cells: Any) -> dict[str, Any]:
    return {"array": {"start": 0, "deleteCount": 1, "cells": []}, **cells}


async def test_a_cell_that_is_closed_and_opened_in_one_change_is_open():
    wire = await Wire("2").start()
    await open_notebook(wire)
    anew = structure(didOpen=[cell("y = ")], didClose=[{"uri": CELL}])
    change_notebook(wire, structure=anew)
    assert wire.document(CELL).source == "y = "
    start = {"start": at(0, 0), "end": at(0, 0)}
    written = {
        "document": {"uri": CELL, "version": 2},
        "changes": [{"range": start, "text": "z"}, {"range": start, "text": "a"}],
    }
    change_notebook(wire, structure=anew, textContent=[written])
    assert (wire.document(CELL).source, wire.document(CELL).version) == ("azy = ", 2)
    change_notebook(wire, structure=structure(didClose=[{"uri": CELL}], didOpen=None))
    assert CELL not in wire.server.workspace.text_documents
    change_notebook(wire, structure=structure(didOpen=[cell("w = ")]))
    assert wire.document(CELL).source == "w = "
