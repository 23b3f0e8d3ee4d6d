"""The completions of one editor window: what is shown stays while the user types into it.

`CompletionSession` puts an editor's habits around a round of completion: the last suggestion stays
valid while the user types its beginning; what they type instead is taken as given, and the rest is
asked for anew, with what the suggestion went on with as a draft; automatic requests wait for a
pause; and the newest request of a document replaces the one before it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lsp_server.ask.completion import (
    CHARS_PER_TOKEN,
    SUPERSEDED,
    Completion,
    Reason,
    Suggestion,
    complete_context,
    window_sizes,
)
from lsp_server.ask.trigger import AdaptiveDebounce, refusal
from lsp_server.check.syntax import CHECKED_CHARS, SyntaxChecker, SyntaxPlace
from lsp_server.document.context import DocumentError, InfillContext, check_document, context_at
from lsp_server.document.related import OpenDocument, RelatedText
from lsp_server.settings import Settings
from model.api import (
    Completer,
    CompletionError,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
    SupersededError,
)

logger = logging.getLogger(__name__)


class EngineSource(Protocol):
    """Where a session gets its completer from; `EngineProcess` is the real one."""

    async def start(self) -> None:
        """Begin loading, in the background, unless that has happened; retry after a failure."""
        ...

    async def completer(self, timeout: float) -> Completer:
        """Wait up to `timeout` seconds for a ready engine; starts one that has stopped.

        Raises `EngineUnavailableError`, whose text says why there is none.
        """
        ...

    async def close(self) -> None:
        """Let go of the engine. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A document and its cursor at the moment a completion was asked for."""

    document: str
    """Names the document, such as its URI."""
    path: str
    language: str
    text: str
    offset: int
    """Of the cursor, in characters of `text`."""
    others: tuple[OpenDocument, ...] = ()
    """The other open documents that the model may read."""


_ENGINE_GRACE_S = 5.0
"""How far past its deadline an engine may answer before it counts as hung."""


@dataclass(frozen=True, slots=True)
class InTime:
    """A completer that waits no longer for its engine than a request's deadline allows."""

    completer: Completer

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """See `Completer.complete`. Raises `EngineUnavailableError` where the engine hangs."""
        limit_s = None
        if request.deadline_ms is not None:
            limit_s = request.deadline_ms / 1000 + _ENGINE_GRACE_S
        answer = self.completer.complete(request, on_frame=on_frame)
        try:
            return await asyncio.wait_for(answer, limit_s)
        except asyncio.TimeoutError:
            raise EngineUnavailableError("the engine did not answer in time") from None

    async def close(self) -> None:
        """See `Completer.close`."""
        await self.completer.close()


class CompletionSession:
    """The completions of one editor window, over all its documents.

    Nothing but `asyncio.CancelledError` leaves `complete`: what goes wrong becomes a reason.
    """

    def __init__(
        self,
        engine: EngineSource,
        settings: Settings,
        checker: SyntaxChecker,
        *,
        related: RelatedText | None = None,
        client: str = "",
    ) -> None:
        """`related` chooses what to read of other documents. `client` names the editor window to
        the engine."""
        self._engine = engine
        self._settings = settings
        self._checker = checker
        self._related = related or RelatedText()
        self._client = client
        self._running: dict[str, asyncio.Task[Completion]] = {}
        self._shown: dict[str, deque[_Shown]] = {}
        self._debounce = AdaptiveDebounce()

    async def complete(self, snapshot: Snapshot, *, explicit: bool) -> Completion:
        """Complete at the snapshot's cursor; `explicit` says that a person asked.

        A request of the same document that is still running answers `SUPERSEDED`.
        """
        older = self._running.get(snapshot.document)
        if older is not None:
            older.cancel()
        task = asyncio.create_task(self._answer(snapshot, explicit))
        self._running[snapshot.document] = task
        try:
            # Unlike `await task`, this tells our own cancellation from the task's.
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            if self._running.get(snapshot.document) is task:
                del self._running[snapshot.document]
        return Completion(reason=SUPERSEDED) if task.cancelled() else task.result()

    def forget(self, document: str) -> None:
        """Drop what is remembered of a closed document, and stop its request."""
        self._shown.pop(document, None)
        self._related.forget(document)
        if document in self._running:
            self._running[document].cancel()

    async def _answer(self, snapshot: Snapshot, explicit: bool) -> Completion:
        try:
            reason = refusal(
                snapshot.path,
                snapshot.language,
                self._settings,
                name=snapshot.document,
                explicit=explicit,
            )
            if reason is not None:
                return Completion(reason=Reason(kind="inactive", message=reason))
            check_document(snapshot.text, name="this document", max_kb=self._settings.max_file_kb)
            context = model_context(snapshot, self._settings)
            typed_through = self._typed_through(snapshot.document, context, explicit)
            if typed_through:
                return Completion(suggestions=typed_through)
            if not explicit:
                await asyncio.sleep(self.debounce_s)
            return await self._ask(snapshot, context, explicit)
        except Exception as error:
            return Completion(reason=reason_of(error, snapshot.language))

    async def _ask(self, snapshot: Snapshot, context: InfillContext, explicit: bool) -> Completion:
        deadlines = self._settings.deadline_ms
        deadline = time.monotonic() + (deadlines.manual if explicit else deadlines.auto) / 1000
        if explicit:
            await self._engine.start()  # someone who asks may want another try after a failure
        completer = await self._engine.completer(deadline - time.monotonic())
        started = time.monotonic()
        remaining = max(deadline - started, 0.001)
        asked, typed = self._diverged(snapshot.document, context) or (
            await with_related(context, snapshot, self._related, self._settings),
            "",
        )
        completion = await complete_context(
            InTime(completer),
            asked,
            syntax_place(snapshot, self._checker),
            self._settings,
            explicit=explicit,
            document=snapshot.document,
            client=self._client,
            typed=typed,
            draft=self._draft(snapshot.document, context),
            deadline_ms=remaining * 1000,
        )
        self._debounce.observe((time.monotonic() - started) * 1000)
        if completion.suggestions:
            history = self._shown.setdefault(snapshot.document, deque(maxlen=HISTORY))
            context = replace(context, related=asked.related)
            history.appendleft(_Shown(context, completion.suggestions, explicit))
        return completion

    def _diverged(self, document: str, now: InfillContext) -> tuple[InfillContext, str] | None:
        """Where the last suggestion was made, and what was typed there instead of it.

        Asked from there, the engine finds the same context, other documents' text included.
        """
        for shown in self._shown.get(document, ()):
            typed = shown.typed_since(now)
            if typed is not None:
                return (shown.context, typed) if 0 < len(typed) <= _MAX_TYPED_CHARS else None
        return None

    def _draft(self, document: str, now: InfillContext) -> str:
        """How the text may well go on: as the last suggestion of the place did, whether the user
        typed into it or something else in its stead."""
        for shown in self._shown.get(document, ()):
            typed = shown.typed_since(now)
            if typed is not None:
                text = shown.suggestions[0].text.replace(now.eol, "\n")
                return rest_after(text, typed)
        return ""

    def _typed_through(
        self, document: str, context: InfillContext, explicit: bool
    ) -> tuple[Suggestion, ...]:
        for shown in self._shown.get(document, ()):
            # An automatic answer holds fewer candidates than a person who asks is owed.
            if shown.explicit or not explicit:
                rest = shown.after_typing(context)
                if rest:
                    return rest
        return ()

    @property
    def debounce_s(self) -> float:
        """For how long the typing has to pause, in seconds."""
        setting = self._settings.debounce_ms
        return (self._debounce.delay_ms if setting == "adaptive" else setting) / 1000


HISTORY = 16
"""Answers remembered per document: going back a few edits finds the old suggestion again."""


_MAX_TYPED_CHARS = 48
"""What is longer is a context of its own: it would fill the canvas of a model that has one."""

_PIECE = re.compile(r"\w+|\s+|[^\w\s]")

_AUTO_CLOSED = frozenset(")]}\"'`")


@dataclass(frozen=True, slots=True)
class _Shown:
    """Suggestions and exactly where they were made."""

    context: InfillContext
    suggestions: Sequence[Suggestion]
    explicit: bool

    def typed_since(self, now: InfillContext) -> str | None:
        """What was typed since at the very place; None when anything else has changed."""
        then = self.context
        if now.suffix != then.suffix or not now.prefix.startswith(then.prefix):
            return None
        if (now.language, now.starts_file, now.ends_file, now.eol) != (
            then.language, then.starts_file, then.ends_file, then.eol,
        ):  # fmt: skip
            return None
        return now.prefix[len(then.prefix) :]

    def after_typing(self, now: InfillContext) -> tuple[Suggestion, ...]:
        """What is left of the suggestions if the user typed their beginning, else nothing.

        The editor may have closed the bracket or quote that the user typed: then the rest ends
        before it.
        """
        closed = now.suffix.removesuffix(self.context.suffix)
        if closed == now.suffix or not _AUTO_CLOSED.issuperset(closed):
            closed = ""
        typed = self.typed_since(replace(now, suffix=now.suffix[len(closed) :]))
        if typed is None:
            return ()
        typed = typed.replace("\n", now.eol)
        return tuple(
            replace(s, text=rest, texts=(rest, *s.texts[1:]))
            for s in self.suggestions
            if s.text.startswith(typed)
            and s.text.endswith(closed)
            and (rest := s.text[len(typed) : len(s.text) - len(closed)]).strip()
        )


def rest_after(text: str, typed: str) -> str:
    """What of `text` is to come once `typed` stands in place of its beginning; "" where they have
    nothing in common.

    Word stands for word, whatever they are: behind `min` there comes what came behind `max`.
    """
    if text.startswith(typed):
        return text[len(typed) :]
    pieces, new = _PIECE.findall(text), _PIECE.findall(typed)
    pairs = list(zip(pieces, new, strict=False))
    if len(new) > len(pieces) or not all(a == b or _are_words(a, b) for a, b in pairs):
        return ""
    last, last_typed = pairs[-1]
    unfinished = last[len(last_typed) :] if last.startswith(last_typed) else ""
    return unfinished + "".join(pieces[len(new) :])


def _are_words(one: str, other: str) -> bool:
    return all(piece[0].isalnum() or piece[0] == "_" for piece in (one, other))


def model_context(snapshot: Snapshot, settings: Settings) -> InfillContext:
    """As much around the cursor as the model is to read. Raises `DocumentError`."""
    return context_at(
        snapshot.text,
        snapshot.offset,
        language=snapshot.language,
        **window_sizes(settings),
    )


async def with_related(
    context: InfillContext, snapshot: Snapshot, related: RelatedText, settings: Settings
) -> InfillContext:
    """The context with as much of the other open documents as it leaves room for."""
    room = context.room_for_related(settings.context.prefix_tokens * CHARS_PER_TOKEN)
    if not snapshot.others or not room:
        return context
    here = OpenDocument(
        name=snapshot.document,
        path=snapshot.path,
        language=snapshot.language,
        text=snapshot.text,
    )
    # Comparing takes milliseconds where large documents are open: not on the loop.
    text = await asyncio.to_thread(related.before, here, snapshot.offset, snapshot.others, room)
    return replace(context, related=text)


def syntax_place(snapshot: Snapshot, checker: SyntaxChecker) -> SyntaxPlace:
    """The cursor for the syntax check: the model's window, cut inside a class, would look broken
    by itself. Raises `DocumentError`."""
    surroundings = context_at(
        snapshot.text,
        snapshot.offset,
        language=snapshot.language,
        prefix_chars=CHECKED_CHARS,
        suffix_chars=CHECKED_CHARS,
    )
    return SyntaxPlace(checker, surroundings)


def reason_of(error: Exception, language: str) -> Reason:
    """What to tell the user of an error; what nobody foresaw goes to the log."""
    if isinstance(error, SupersededError):
        return SUPERSEDED
    if isinstance(error, DocumentError):
        return Reason(kind="inactive", message=str(error))
    if isinstance(error, CompletionError):
        return Reason(kind="warning", message=str(error))
    logger.error("completion in a %s document failed", language, exc_info=error)
    return Reason(kind="error", message="internal error: see the log")
