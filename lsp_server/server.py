"""The language server of one editor window: its settings, engine, status and documents.

LSP types are known here, in `handlers`, `protocol`, `commands`, `code_actions` and `launch`, in
`ask.documents`, where positions become character offsets and back, in `ask.hints` and in `window`,
nowhere else. Nothing waits for the model before `initialize` is answered, and nothing imports
torch.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer
from pygls.workspace import TextDocument

from lsp_server.ask.completion import SUPERSEDED, Completion, Reason, Suggestion
from lsp_server.ask.documents import (
    document_at,
    documents_beside,
    is_completed,
    language,
    name_of,
    note_edits,
    snapshot_of,
)
from lsp_server.ask.fill import Filler
from lsp_server.ask.hints import HoleHints
from lsp_server.ask.session import CompletionSession, EngineSource, Snapshot
from lsp_server.check.confidence import told
from lsp_server.check.syntax import SyntaxChecker
from lsp_server.document.recent_edits import RecentEdits
from lsp_server.document.related import RelatedText
from lsp_server.engine_link.api_keys import ApiKeys
from lsp_server.engine_link.engine_process import EngineState
from lsp_server.protocol import Protocol, make_converter
from lsp_server.settings import SECTION, Settings, parse_settings
from lsp_server.window.declined import DeclinedModels
from lsp_server.window.handover import Handover
from lsp_server.window.statistics import SuggestionLog, state_directory
from lsp_server.window.status import StatusBoard
from lsp_server.window.wanted_model import NoModel, WantedModel, is_named
from model.backbone.catalogue import KNOWN

logger = logging.getLogger(__name__)

STATUS = "mezzotint/status"
"""Notification of a status (`StatusBoard`); docs/editors-protocol.md has its fields."""

ANSWER = "mezzotint/answer"
"""Notification {id, suggestions: [{confidence, newSyntaxErrors}], kind, reason, engineMs}: what
the answer to the `inlineCompletion` request of that id, which it precedes, has no room for.
Only for clients that announce the capability `experimental.mezzotint.answers`."""

ACCEPTED = f"{SECTION}.didAcceptCompletionItem"
"""Command of every item: the client runs it once the item is inserted."""

EngineFactory = Callable[[Settings, Callable[[EngineState], None]], EngineSource]

_CONFIGURATION_TIMEOUT_S = 5.0


class MezzotintServer(LanguageServer):
    """One editor window's language server. Its handlers are the functions below it."""

    protocol: Protocol  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, make_engine: EngineFactory, keys: ApiKeys) -> None:
        # pygls leaves its further arguments untyped.
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            SECTION,
            version("mezzotint"),
            protocol_cls=Protocol,
            converter_factory=make_converter,
            # Cells are documents like any other; the notebook around them is not looked at.
            notebook_document_sync=types.NotebookDocumentSyncOptions(
                [types.NotebookDocumentFilterWithNotebook(notebook="*")]
            ),
        )
        self._make_engine = make_engine
        self.keys = keys
        self._client = uuid.uuid4().hex
        self._checker = SyntaxChecker()
        self._edits = RecentEdits()
        self._engine: EngineSource | None = None
        self._engine_generation = 0
        self._session: CompletionSession | None = None
        self._settings: Settings | None = None
        """Those in force; a model's name in them has become a path, or nothing where it is not
        here."""
        self._newest_settings: Settings | None = None
        self._were_settings_pulled = False
        self._configured = asyncio.Event()
        self._shown_problems: set[str] = set()
        self.initialization_options: object = None
        self.status = StatusBoard(partial(self.protocol.notify, STATUS))
        self._wanted_model = WantedModel(
            self,
            DeclinedModels(state_directory()),
            tell=self.status.model_is,
            serves=lambda: self._settings is not None and _has_engine(self._settings),
            on_fetched=self._take_fetched_model,
        )
        self.suggestions = SuggestionLog(state_directory())
        self._engine_state_changed = asyncio.Event()
        self._filler: Filler | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._hints = HoleHints(self.text_document_publish_diagnostics, self.spawn)

    def report_server_error(self, error: Exception, source: object) -> None:
        """Log what pygls would show as a pop-up."""
        logger.error("%s: %s", getattr(source, "__name__", source), error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background and log how it fails."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task failed", exc_info=error)

    # Settings

    async def pull_settings(self, pushed: object = None) -> None:
        """Ask the client for our section; `pushed` is for clients that do not answer."""
        self._were_settings_pulled = True
        raw = pushed
        if get_capability(self.client_capabilities, "workspace.configuration"):
            request = types.ConfigurationParams([types.ConfigurationItem(section=SECTION)])
            try:
                answer = await asyncio.wait_for(
                    self.workspace_configuration_async(request), _CONFIGURATION_TIMEOUT_S
                )
                raw = answer[0] if answer else None
            except (asyncio.TimeoutError, JsonRpcException) as error:
                logger.warning("the client did not tell its settings: %r", error)
        # Null and {} are what clients answer that hold no such section.
        settings = self._read(self.initialization_options if raw in (None, {}) else raw)
        self._newest_settings = settings
        settings_here = await self._with_a_model_here(settings)
        if self._newest_settings is settings:
            self._adopt(settings_here)

    async def configured(self) -> None:
        """Wait until there are settings. The first who waits asks for them, where the client has
        not said `initialized`."""
        if not self._were_settings_pulled:
            self.spawn(self.pull_settings())
        await self._configured.wait()

    def _read(self, raw: object) -> Settings:
        settings, problems = parse_settings(raw)
        for problem in problems:
            if problem not in self._shown_problems:
                self._shown_problems.add(problem)
                message = types.ShowMessageParams(types.MessageType.Warning, problem)
                self.window_show_message(message)
        return settings

    async def _with_a_model_here(self, settings: Settings) -> Settings:
        """`settings` with a path in place of a model's name: that of the model so far until the
        named one is on this machine, and none where there was none."""
        name = settings.model.path
        is_wanted = settings.enabled and not settings.engine.url and is_named(name)
        found = await self._wanted_model.path(name if is_wanted else None)
        if not is_named(name) or settings.engine.url:
            return settings
        before = self._settings
        has_local = before is not None and not before.engine.url
        path = str(found) if found else before.model.path if before and has_local else ""
        return replace(settings, model=replace(settings.model, path=path))

    def _take_fetched_model(self, path: Path) -> None:
        settings = self._settings
        if settings is not None and self._engine is not None:
            self._adopt(replace(settings, model=replace(settings.model, path=str(path))))
            self.spawn(self._engine.start())

    def offer_model(self) -> None:
        """Offer the model that is wanted and not here, also where the user said no before."""
        self._wanted_model.ask_again()

    def _adopt(self, settings: Settings) -> None:
        previous, self._settings = self._settings, settings
        set_log_level(settings)
        if self._engine is None or previous is None or _engine_of(previous) != _engine_of(settings):
            self._engine = self._another_engine(previous, settings)
        made = (self._engine, settings, self._checker)
        related = RelatedText(self._edits)
        self._session = CompletionSession(*made, related=related, client=self._client)
        self._filler = Filler(*made, related=related, client=self._client)
        self._configured.set()
        for document in self.workspace.text_documents.values():
            self.hint(document)
        disabled = None if settings.enabled else Reason(kind="inactive", message="disabled")
        self.status.answered(disabled)

    def _another_engine(self, previous: Settings | None, settings: Settings) -> EngineSource:
        old = self._engine
        self.status.engine_is(None)
        self._engine_state_changed.set()  # ends the progress of its loading
        self._engine_generation += 1
        if _has_engine(settings):
            # The one that is being closed still has news, which are nobody's any more.
            on_state = partial(self._on_engine_state, self._engine_generation)
            new = self._make_engine(settings, on_state)
        else:
            new = NoModel(lambda: self.status.model)
        if old is None:
            return new
        goes_local = settings.model.path and not settings.engine.url
        if previous is not None and _is_light(previous) and goes_local:
            return Handover(old, new)
        self.spawn(old.close())
        return new

    # Completions

    async def warm_up(self, document: TextDocument) -> None:
        """Start the engine if `document` is one that it will be asked about."""
        await self.configured()
        settings, engine = self._settings, self._engine
        if settings is None or engine is None or not settings.enabled:
            return
        if is_completed(document, settings):
            await engine.start()

    async def complete(
        self, document: TextDocument, text: str, offset: int, *, explicit: bool
    ) -> Completion:
        """Complete `text`, which is the document's or what it is about to become.

        Empty when the document has changed in the meantime. Never raises, except when cancelled.
        """
        version = document.version
        await self.configured()
        if not self.is_current(document, version):
            return Completion()
        assert self._session is not None
        with self.status.working():
            completion = await self._session.complete(
                self.snapshot(document, text, offset), explicit=explicit
            )
            if completion.reason != SUPERSEDED:
                self.status.answered(completion.reason, completion.result)
        return completion if self.is_current(document, version) else Completion()

    def snapshot(self, document: TextDocument, text: str, offset: int) -> Snapshot:
        """The document as `text` makes it, and beside it what else the settings let be read."""
        settings = self._settings
        if settings is None or not settings.context.open_files:
            return snapshot_of(document, text, offset)
        others = documents_beside(document, self.workspace, settings)
        return snapshot_of(document, text, offset, others)

    async def filler(self) -> Filler:
        """What fills documents, by the settings in force; waits for the first ones."""
        await self.configured()
        assert self._filler is not None
        return self._filler

    def is_current(self, document: TextDocument, version: int | None) -> bool:
        """Whether `document` is still open, and still of that version."""
        return self.document(document.uri) is document and document.version == version

    def completes(self, document: TextDocument) -> bool:
        """Whether a person may ask for something in this document, as far as is known by now."""
        settings = self._settings
        return settings is not None and is_completed(document, settings)

    def manual_only(self) -> bool:
        """Whether the user wants no completion that they did not ask for."""
        return self._settings is not None and self._settings.trigger == "manual"

    def document(self, uri: str) -> TextDocument | None:
        """See `document_at`."""
        return document_at(uri, self.workspace)

    def open_document(self, uri: str) -> TextDocument | None:
        """See `document_at`; that there is none shows in the status."""
        document = self.document(uri)
        if document is None:
            reason = Reason(kind="warning", message="the editor has not opened this document")
            self.status.answered(reason)
        return document

    def note_edits(
        self, document: TextDocument, changes: Sequence[types.TextDocumentContentChangeEvent]
    ) -> None:
        """Remember where the user is at work."""
        note_edits(self._edits, document, changes)

    def hint(self, document: TextDocument, *, changed: bool = False) -> None:
        """Have the client show where the document has holes; if it `changed`, after a pause."""
        if self._settings is not None and self._session is not None:  # else once there are any
            after_s = self._session.debounce_s if changed else 0.0
            self._hints.refresh(document, self._settings, after_s=after_s)

    def forget(self, uri: str) -> None:
        """Drop what is kept of a closed document."""
        name = name_of(uri)
        self._edits.forget(name)
        self._hints.forget(name)
        if self._session is not None:
            self._session.forget(name)

    async def close_engine(self) -> None:
        """Let go of the engine, which may go on to serve other windows."""
        await self._wanted_model.close()
        if self._engine is not None:
            await self._engine.close()

    # Status

    def _on_engine_state(self, generation: int, state: EngineState) -> None:
        if generation != self._engine_generation:
            return
        was_loading = self.status.is_loading
        if isinstance(self._engine, Handover) and not self._engine.is_done:
            if state.kind == "ready":
                self.spawn(self._engine.finish())
            elif state.kind == "failed":
                state = replace(state, message=f"{state.message}; the model so far goes on")
        self.status.engine_is(state)
        self._engine_state_changed.set()
        if self.status.is_loading and not was_loading:
            supported = "window.work_done_progress"
            if get_capability(self.client_capabilities, supported):
                self.spawn(self._show_progress())

    def offered(
        self, document: TextDocument, suggestions: Sequence[Suggestion]
    ) -> Sequence[Suggestion]:
        """The suggestions, taken note of, for their fate may be reported."""
        for suggestion in suggestions:
            self.suggestions.offer(
                suggestion.id,
                language=language(document),
                num_characters=len(suggestion.text.encode("utf-16-le")) // 2,
                confidence=suggestion.confidence,
            )
        return suggestions

    def tell_answer(self, completion: Completion) -> None:
        """Tell a client that wants to know how the answer came about that it is about to get."""
        if not _wants_answers(self.client_capabilities):
            return
        reason, result = completion.reason, completion.result
        answer = {
            "id": self.protocol.msg_id,
            "suggestions": [
                {"confidence": told(s.confidence), "newSyntaxErrors": s.new_syntax_errors}
                for s in completion.suggestions
            ],
            "kind": reason.kind if reason else "normal",
            "reason": reason.message if reason else None,
            "engineMs": result.ms if result else None,
        }
        self.protocol.notify(ANSWER, answer)

    async def _show_progress(self) -> None:
        token = f"{SECTION}-{uuid.uuid4().hex}"
        progress = self.work_done_progress
        try:
            await self.window_work_done_progress_create_async(
                types.WorkDoneProgressCreateParams(token)
            )
        except JsonRpcException as error:
            logger.info("the client shows no progress: %s", error)
            return
        begun = False
        while (state := self.status.engine) is not None and self.status.is_loading:
            percentage = None if state.fraction is None else round(100 * state.fraction)
            if not begun:
                begin = types.WorkDoneProgressBegin(
                    "Mezzotint", message=state.message, percentage=percentage
                )
                progress.begin(token, begin)
                begun = True
            else:
                report = types.WorkDoneProgressReport(message=state.message, percentage=percentage)
                progress.report(token, report)
            self._engine_state_changed.clear()
            await self._engine_state_changed.wait()
        if begun:
            message = None if state is None else state.message
            progress.end(token, types.WorkDoneProgressEnd(message=message))


def _wants_answers(capabilities: types.ClientCapabilities) -> bool:
    match capabilities.experimental:
        case {"mezzotint": {"answers": True}}:
            return True
        case _:
            return False


def _has_engine(settings: Settings) -> bool:
    """Whether there is something to complete with: an engine elsewhere, or a model here."""
    return bool(settings.engine.url or settings.model.path)


def _is_light(settings: Settings) -> bool:
    """Whether the model is small enough to fit in memory beside the next one."""
    backbones = {str(known.path) for known in KNOWN.values()}
    return not settings.engine.url and settings.model.path in backbones


def _engine_of(settings: Settings) -> tuple[object, object]:
    """The settings that only another engine can satisfy."""
    return settings.model, settings.engine


def set_log_level(settings: Settings) -> None:
    """Follow `log.level`; what holds source text stays out unless `log.includeSource` is on."""
    level = settings.log.level.upper()
    logging.getLogger("lsp_server").setLevel(level)
    logging.getLogger("model").setLevel(level)
    # pygls logs every message it sends, completions included, at INFO.
    logging.getLogger("pygls").setLevel(level if settings.log.include_source else logging.WARNING)
