"""A client that says exactly what a test has it say, and the server, both in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from typing import Any

from conftest import TIMEOUT_S
from fake_server import FakeCompleter, FakeEngine
from pygls.workspace import TextDocument

from lsp_server.launch import create_server

URI = "file:///tmp/a.py"
CONFIGURATION, APPLY = "workspace/configuration", "workspace/applyEdit"
CREATE = "window/workDoneProgress/create"
NOTHING = object()


class Wire:
    """A client that says exactly what a test has it say, and the server that it speaks to."""

    def __init__(self, *texts: str, delay_s: float = 0.0) -> None:
        self.completer = FakeCompleter(*texts, delay_s=delay_s)
        self.events: list[str] = []
        self.completer.record = lambda event, **_: self.events.append(event)  # type: ignore[method-assign]
        self.server = create_server(lambda _, on_state: FakeEngine(self.completer, on_state))
        self.protocol = self.server.protocol
        self.protocol.set_writer(self, include_headers=False)
        self.sent: list[dict[str, Any]] = []
        """By the server."""
        self.answers: dict[str, dict[str, Any]] = {
            CREATE: {"result": None},
            APPLY: {"result": None},
        }
        """The members of the answers to what the server asks; it gets none where there are none."""
        self._ids = count(1)
        self._versions = count(2)

    # What the server writes to

    def write(self, data: bytes) -> None:
        message = json.loads(data)
        self.sent.append(message)
        if "id" in message and message.get("method") in self.answers:
            answer = {"id": message["id"], **self.answers[message["method"]]}
            asyncio.get_running_loop().call_soon(self.send, answer)

    def close(self) -> None:
        pass

    # What the client says

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message})
        try:
            read = json.loads(body, object_hook=self.protocol.structure_message)
            self.protocol.handle_message(read)
        except Exception as error:  # pygls' loop logs it and goes on
            self.server.report_server_error(error, type(error))

    def notify(self, method: str, params: Any = NOTHING) -> None:
        self.send({"method": method} | ({} if params is NOTHING else {"params": params}))

    def ask(self, method: str, params: Any = None) -> int:
        number = next(self._ids)
        self.send({"id": number, "method": method, "params": params})
        return number

    async def answer(self, number: int) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [m for m in self.sent if m.get("id") == number and "method" not in m]

        await self.until(found)
        (answer,) = found()
        return answer

    async def until(self, condition: Callable[[], object]) -> None:
        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        await asyncio.wait_for(poll(), TIMEOUT_S)

    def was_asked(self, method: str) -> bool:
        return any(message.get("method") == method for message in self.sent)

    async def start(self, **capabilities: Any) -> Wire:
        """Say hello."""
        supported = {"textDocument": {"inlineCompletion": {}}, **capabilities}
        hello = {"processId": None, "rootUri": None, "capabilities": supported}
        assert "result" in await self.answer(self.ask("initialize", hello))
        self.notify("initialized", {})
        return self

    def open(self, text: str, uri: str = URI, language: str = "python") -> None:
        document = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})

    def change(self, *changes: dict[str, Any], uri: str = URI) -> None:
        document = {"uri": uri, "version": next(self._versions)}
        params = {"textDocument": document, "contentChanges": [*changes]}
        self.notify("textDocument/didChange", params)

    def inline(self, line: int, character: int, uri: str = URI, **context: Any) -> int:
        return self.ask(
            "textDocument/inlineCompletion",
            {
                "textDocument": {"uri": uri},
                "position": {"line": line, "character": character},
                "context": {"triggerKind": 1, **context},
            },
        )

    def run(self, command: str, **argument: Any) -> int:
        params = {"command": command, "arguments": [{"uri": URI, **argument}]}
        return self.ask("workspace/executeCommand", params)

    def code_actions(self, line: int, uri: str = URI, *diagnostics: Any) -> int:
        params = {
            "textDocument": {"uri": uri},
            "range": {"start": at(line, 0), "end": at(line, 0)},
            "context": {"diagnostics": diagnostics},
        }
        return self.ask("textDocument/codeAction", params)

    def hints(self, uri: str = URI) -> list[dict[str, Any]]:
        """The hints that the server shows in a document by now."""
        method = "textDocument/publishDiagnostics"
        told = [m["params"] for m in self.sent if m.get("method") == method]
        return next((p["diagnostics"] for p in reversed(told) if p["uri"] == uri), [])

    def document(self, uri: str = URI) -> TextDocument:
        document = self.server.document(uri)
        assert document is not None
        return document


def at(line: int, character: int) -> dict[str, int]:
    return {"line": line, "character": character}


def items(answer: dict[str, Any]) -> list[str]:
    return [item["insertText"] for item in answer["result"]["items"]]
