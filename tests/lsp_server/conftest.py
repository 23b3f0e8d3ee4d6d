"""A client with a real stdio session to the real server over a fake engine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from default_model import put_default_model
from lsprotocol import types
from pygls.exceptions import JsonRpcMethodNotFound
from pygls.protocol import default_converter
from pytest_lsp import LanguageClient
from pytest_lsp.client import DEFAULT_CLIENT_FEATURES, register_lsp_features

# The tests are no package (importmode=importlib), and the session runs this file as a script.
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

TIMEOUT_S = 20.0


def _attributes(value: Any) -> Any:
    """JSON, with the members of objects as attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _attributes(member) for key, member in value.items()})
    return [*map(_attributes, value)] if isinstance(value, list) else value


class Session(LanguageClient):
    """An editor window. Every wait ends after `TIMEOUT_S`."""

    def __init__(self, journal: Path) -> None:
        super().__init__(converter_factory=default_converter)
        self.hints: list[types.PublishDiagnosticsParams] = []
        features = {
            **DEFAULT_CLIENT_FEATURES,
            types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS: lambda params: self.hints.append(params),
        }
        register_lsp_features(self, features)
        self.statuses: list[Any] = []
        self.feature("mezzotint/status")(lambda status: self.statuses.append(status))
        self.answers: list[Any] = []
        self.feature("mezzotint/answer")(lambda answer: self.answers.append(answer))
        self.frames: list[Any] = []
        self.feature("mezzotint/frame")(lambda frame: self.frames.append(frame))
        self.edits: list[types.ApplyWorkspaceEditParams] = []
        self.apply = True
        self.feature(types.WORKSPACE_APPLY_EDIT)(lambda params: self._apply(params))
        self.questions: list[types.ShowMessageRequestParams] = []
        self.choose: Callable[[], Awaitable[str | None]] | None = None
        """What the user does about a question; None: this client asks its user nothing."""
        self.feature(types.WINDOW_SHOW_MESSAGE_REQUEST)(partial(Session._ask, self))
        self._journal = journal
        self._versions: dict[str, int] = {}

    def _apply(self, params: types.ApplyWorkspaceEditParams) -> types.ApplyWorkspaceEditResult:
        self.edits.append(params)
        reason = None if self.apply else "the user is looking elsewhere"
        return types.ApplyWorkspaceEditResult(self.apply, failure_reason=reason)

    async def _ask(self, params: types.ShowMessageRequestParams) -> types.MessageActionItem | None:
        if self.choose is None:
            raise JsonRpcMethodNotFound
        self.questions.append(params)
        chosen = await self.choose()
        return None if chosen is None else types.MessageActionItem(chosen)

    async def run(self, command: str, *arguments: Any) -> Any:
        """Execute a command; its result."""
        params = types.ExecuteCommandParams(command, arguments=[*arguments])
        answer = self.workspace_execute_command_async(params)
        return _attributes(await asyncio.wait_for(answer, TIMEOUT_S))

    def close(self, uri: str) -> None:
        document = types.TextDocumentIdentifier(uri)
        self.text_document_did_close(types.DidCloseTextDocumentParams(document))

    def journal(self, event: str) -> list[dict[str, Any]]:
        """What the fake engine has written down so far under `event`."""
        if not self._journal.exists():
            return []
        entries = [json.loads(line) for line in self._journal.read_text("utf-8").splitlines()]
        return [entry for entry in entries if entry["event"] == event]

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"never came true; statuses: {self.statuses}"
            await asyncio.sleep(0.01)

    def open(self, text: str, *, uri: str = "file:///tmp/a.py", language: str = "python") -> str:
        self._versions[uri] = 1
        item = types.TextDocumentItem(uri, language, 1, text)
        self.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return uri

    def edit(self, uri: str, start: tuple[int, int], end: tuple[int, int], text: str) -> None:
        self._versions[uri] += 1
        change = types.TextDocumentContentChangePartial(
            types.Range(types.Position(*start), types.Position(*end)), text
        )
        document = types.VersionedTextDocumentIdentifier(self._versions[uri], uri)
        self.text_document_did_change(types.DidChangeTextDocumentParams(document, [change]))

    def inline_params(
        self,
        uri: str,
        line: int,
        character: int,
        *,
        automatic: bool = False,
        selected: types.SelectedCompletionInfo | None = None,
    ) -> types.InlineCompletionParams:
        kinds = types.InlineCompletionTriggerKind
        return types.InlineCompletionParams(
            context=types.InlineCompletionContext(
                kinds.Automatic if automatic else kinds.Invoked, selected
            ),
            text_document=types.TextDocumentIdentifier(uri),
            position=types.Position(line, character),
        )

    async def inline(
        self, uri: str, line: int, character: int, **how: Any
    ) -> list[types.InlineCompletionItem]:
        answer = self.text_document_inline_completion_async(
            self.inline_params(uri, line, character, **how)
        )
        result = await asyncio.wait_for(answer, TIMEOUT_S)
        assert isinstance(result, types.InlineCompletionList)
        return list(result.items)


def capabilities(
    *,
    encoding: str = "utf-16",
    inline: bool = True,
    configuration: bool = True,
    progress: bool = True,
    answers: bool = False,
    versioned: bool = True,
    notebooks: bool = False,
) -> types.ClientCapabilities:
    return types.ClientCapabilities(
        experimental={"mezzotint": {"answers": True}} if answers else None,
        general=types.GeneralClientCapabilities(
            position_encodings=[types.PositionEncodingKind(encoding)]
        ),
        text_document=types.TextDocumentClientCapabilities(
            inline_completion=types.InlineCompletionClientCapabilities() if inline else None,
            completion=types.CompletionClientCapabilities(),
        ),
        workspace=types.WorkspaceClientCapabilities(
            configuration=configuration,
            apply_edit=True,
            workspace_edit=types.WorkspaceEditClientCapabilities(document_changes=versioned),
        ),
        notebook_document=types.NotebookDocumentClientCapabilities(
            types.NotebookDocumentSyncClientCapabilities()
        )
        if notebooks
        else None,
        window=types.WindowClientCapabilities(work_done_progress=progress),
    )


StartSession = Callable[..., Awaitable[Session]]


@pytest.fixture(autouse=True)
def default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has the default model: a file of its size without a byte on the disk, which
    fake engines do not read."""
    monkeypatch.setenv("MEZZOTINT_MODELS", str(tmp_path / "models"))
    return put_default_model(tmp_path / "models")


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the statistics of tests out of the user's."""
    monkeypatch.setenv("MEZZOTINT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
async def start_session(tmp_path: Path) -> AsyncIterator[StartSession]:
    """Start a server: `await start_session("--text", "x", settings={...}, encoding="utf-8")`.

    `settings` is what the client answers to `workspace/configuration`.
    """
    sessions: list[Session] = []

    async def start(
        *arguments: str,
        settings: object = None,
        initialization_options: object = None,
        choose: Callable[[], Awaitable[str | None]] | None = None,
        **supported: Any,
    ) -> Session:
        journal = tmp_path / f"journal-{len(sessions)}.jsonl"
        session = Session(journal)
        session.choose = choose
        sessions.append(session)
        if settings is not None:
            session.set_configuration({"mezzotint": settings})
        script = str(HERE / "fake_server.py")
        await session.start_io(sys.executable, script, "--journal", str(journal), *arguments)
        params = types.InitializeParams(
            capabilities=capabilities(**supported), initialization_options=initialization_options
        )
        session.initialize_result = await asyncio.wait_for(
            session.initialize_session(params), TIMEOUT_S
        )
        return session

    yield start
    for session in sessions:
        if session._server is not None and session._server.returncode is None:
            await asyncio.wait_for(session.shutdown_session(), TIMEOUT_S)
        await session.stop()
