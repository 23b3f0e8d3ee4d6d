"""From a cursor in a document to the completions worth showing. Knows no LSP types.

`complete_context` is one round: context -> request -> candidates -> trimmed, checked, ranked.
`CompletionSession` puts an editor's habits around it: the last suggestion stays valid while the
user types into it, automatic requests wait for a pause, and the newest request of a document
replaces the one before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from lsp_server.context import DocumentError, InfillContext, check_document, context_at
from lsp_server.settings import Settings
from lsp_server.syntax import CHECKED_CHARS, SyntaxChecker
from model.api import (
    Candidate,
    Completer,
    CompletionError,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
    SupersededError,
)

logger = logging.getLogger(__name__)

ErrorCounter = Callable[[Sequence[str]], int | None]
"""How many syntax errors filling the holes adds; None where no grammar knows the language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A completion that passed every check, in the document's own line endings."""

    text: str
    """What to insert at the cursor (in the first hole)."""
    confidence: float
    """The model's probability of the whole text, 0..1 (`Candidate.confidence`)."""
    new_syntax_errors: int | None
    """Syntax errors it adds to the document; None when unchecked."""
    texts: tuple[str, ...]
    """One text a hole, `text` first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why there is nothing to show, in a few words for a status bar."""

    kind: Literal["normal", "warning", "error", "inactive"]
    message: str


SUPERSEDED = Reason(kind="normal", message="a newer request took this one's place")
"""Not worth showing: the newer request brings its own reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The suggestions, best first; when there are none, the reason."""

    suggestions: tuple[Suggestion, ...] = ()
    reason: Reason | None = None
    result: InfillResult | None = None
    """What the engine answered; None when it was not asked."""


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


async def complete_context(
    completer: Completer,
    context: InfillContext,
    settings: Settings,
    *,
    explicit: bool,
    document: str = "",
    client: str = "",
    deadline_ms: float | None = None,
    count_new_errors: ErrorCounter | None = None,
    on_frame: FrameListener | None = None,
) -> Completion:
    """Fill the holes of `context` and keep the candidates worth showing.

    `explicit` says that a person asked. `deadline_ms` of None takes the setting's. Raises
    `CompletionError` when the completer does; cancelling stops the denoising.
    """
    request = infill_request(context, settings, explicit=explicit, document=document, client=client)
    if deadline_ms is not None:
        request = replace(request, deadline_ms=deadline_ms)
    result = await completer.complete(request, on_frame=on_frame)
    # Parsing takes milliseconds in a large file: not on the loop, which must hear cancellations.
    completion = await asyncio.to_thread(
        select_suggestions,
        result.candidates,
        context,
        settings,
        explicit=explicit,
        count_new_errors=count_new_errors,
    )
    return replace(completion, result=result)


def infill_request(
    context: InfillContext, settings: Settings, *, explicit: bool, document: str, client: str
) -> InfillRequest:
    """State the context and the settings as a request to the engine.

    Raises `InvalidRequestError` when a setting is out of the engine's range.
    """
    return InfillRequest(
        prefix=context.prefix,
        suffix=context.suffix,
        between=context.between,
        starts_file=context.starts_file,
        ends_file=context.ends_file,
        language=context.language,
        document=document,
        client=client,
        priority="manual" if explicit else "auto",
        max_new_tokens=settings.max_new_tokens,
        candidates=settings.candidates.manual if explicit else settings.candidates.auto,
        steps=settings.steps,
        deadline_ms=settings.deadline_ms.manual if explicit else settings.deadline_ms.auto,
    )


def select_suggestions(
    candidates: Iterable[Candidate],
    context: InfillContext,
    settings: Settings,
    *,
    explicit: bool,
    count_new_errors: ErrorCounter | None = None,
) -> Completion:
    """Trim, check and rank what the model made; say why when nothing is left."""
    following = context.between[0] if context.between else context.suffix
    trimmed: dict[str, Candidate] = {}
    for candidate in candidates:
        text = trim_candidate(candidate.text, following, single_line=not explicit)
        # Of candidates that became equal by trimming, the first (the greedy one) stays.
        if text and not _repeats(text, following):
            trimmed.setdefault(text, candidate)
    if not trimmed:
        return _nothing("the model has nothing to add here")

    # Who asks is shown what there is; what comes up by itself has to be worth the interruption.
    least = 0.0 if explicit else settings.min_confidence
    confident = {t: c for t, c in trimmed.items() if c.confidence >= least}
    if not confident:
        return _nothing(f"no candidate reached the confidence of {settings.min_confidence:g}")

    check = count_new_errors if settings.syntax_check != "off" else None
    suggestions: list[Suggestion] = []
    for text, candidate in confident.items():
        texts = (text, *candidate.texts[1:])
        new_syntax_errors = check(texts) if check else None
        texts = tuple(text.replace("\n", context.eol) for text in texts)
        suggestions.append(
            Suggestion(
                text=texts[0],
                confidence=candidate.confidence,
                new_syntax_errors=new_syntax_errors,
                texts=texts,
            )
        )
    if settings.syntax_check == "strict":
        suggestions = [s for s in suggestions if not s.new_syntax_errors]
        if not suggestions:
            return _nothing("no candidate without new syntax errors")
    # The sort is stable: among equals, the engine's order (greedy first) stays.
    suggestions.sort(key=lambda s: (bool(s.new_syntax_errors), -s.confidence))
    return Completion(suggestions=tuple(suggestions))


def _nothing(message: str) -> Completion:
    return Completion(reason=Reason(kind="normal", message=message))


def trim_candidate(text: str, following: str, *, single_line: bool) -> str:
    """Cut from `text` what the document already has right after the cursor.

    `following` is the document after the cursor. With `single_line`, a cursor that has text to
    its right gets one line only. Returns "" when nothing worth inserting is left.
    """
    rest_of_line = following.partition("\n")[0]
    if single_line and rest_of_line.strip():
        text = text.partition("\n")[0]
    if not rest_of_line.strip():
        text = text.rstrip()
    text = text[: len(text) - _overlap(text, following)]
    # A space before text that stays on the line matters, unless one is there already.
    if not rest_of_line.strip() or rest_of_line[0].isspace():
        text = text.rstrip()
    return text if text.strip() else ""


_MAX_OVERLAP = 400
"""Characters of a candidate's end compared with what follows; longer repeats are rare."""


def _overlap(text: str, following: str) -> int:
    """Length of the end of `text` that `following` begins with and that must not be doubled.

    Either whole lines of what follows, or a run of closing punctuation such as `")`.
    """
    for length in range(min(len(text), len(following), _MAX_OVERLAP), 0, -1):
        shared = following[:length]
        if not text.endswith(shared) or not shared.strip():
            continue
        ends_line = not following[length:].partition("\n")[0].strip()
        punctuation = not any(c.isalnum() or c.isspace() or c == "_" for c in shared)
        if (ends_line or punctuation) and not _closes_own(text, len(text) - length):
            return length
    return 0


_OPENER = {")": "(", "]": "[", "}": "{"}


def _closes_own(text: str, start: int) -> bool:
    """Whether `text[start:]` closes a bracket or quote that `text[:start]` opened.

    Then it is not a double of what follows: in `print(x|)`, the candidate `, f(y)` ends with a
    bracket of its own.
    """
    opened: list[str] = []
    for index, character in enumerate(text):
        if character in "([{":
            opened.append(character)
        elif character in ")]}" and opened and opened[-1] == _OPENER[character]:
            opened.pop()
            if index >= start:
                return True
    return any(
        quote in text[start:] and text.count(quote, 0, start) % 2 for quote in ('"', "'", "`")
    )


def _repeats(text: str, following: str) -> bool:
    """Whether the document goes on with exactly the lines of `text`.

    Lines of brackets alone often follow each other: whether one is too many is for the syntax
    check to say.
    """
    ahead, lines = following.lstrip(), text.strip()
    if not lines.strip(")]}"):
        return False
    return ahead.startswith(lines) and not ahead[len(lines) :].partition("\n")[0].strip()


CHARS_PER_TOKEN = 4
"""Upper estimate for source code, so that the window holds at least the tokens asked for."""

_ENGINE_GRACE_S = 5.0
"""How far past its deadline an engine may answer before it counts as hung."""


class CompletionSession:
    """The completions of one editor window, over all its documents.

    Nothing but `asyncio.CancelledError` leaves `complete`: what goes wrong becomes a reason.
    """

    def __init__(
        self, engine: EngineSource, settings: Settings, checker: SyntaxChecker, *, client: str = ""
    ) -> None:
        """`client` names the editor window to the engine."""
        self._engine = engine
        self._settings = settings
        self._checker = checker
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
        if document in self._running:
            self._running[document].cancel()

    async def _answer(self, snapshot: Snapshot, explicit: bool) -> Completion:
        reason = self._refusal(snapshot, explicit)
        if reason is not None:
            return Completion(reason=reason)
        try:
            check_document(snapshot.text, name="this document", max_kb=self._settings.max_file_kb)
            context = context_at(
                snapshot.text,
                snapshot.offset,
                language=snapshot.language,
                prefix_chars=self._settings.context.prefix_tokens * CHARS_PER_TOKEN,
                suffix_chars=self._settings.context.suffix_tokens * CHARS_PER_TOKEN,
            )
            typed_through = self._typed_through(snapshot.document, context, explicit)
            if typed_through:
                return Completion(suggestions=typed_through)
            if not explicit:
                await asyncio.sleep(self._debounce_s())
            return await self._ask(snapshot, context, explicit)
        except SupersededError:
            return Completion(reason=SUPERSEDED)
        except DocumentError as error:
            return Completion(reason=Reason(kind="inactive", message=str(error)))
        except CompletionError as error:
            return Completion(reason=Reason(kind="warning", message=str(error)))
        except Exception:
            logger.exception("completion in a %s document failed", snapshot.language)
            return Completion(reason=Reason(kind="error", message="internal error: see the log"))

    def _refusal(self, snapshot: Snapshot, explicit: bool) -> Reason | None:
        settings = self._settings
        if not settings.enabled:
            message = "disabled"
        elif not settings.enabled_for(snapshot.language):
            message = f"disabled for {snapshot.language or 'this language'}"
        elif settings.excludes(snapshot.path):
            message = "excluded file"
        elif not explicit and settings.trigger == "manual":
            message = "completes on request only (trigger is manual)"
        else:
            return None
        return Reason(kind="inactive", message=message)

    async def _ask(self, snapshot: Snapshot, context: InfillContext, explicit: bool) -> Completion:
        deadlines = self._settings.deadline_ms
        deadline = time.monotonic() + (deadlines.manual if explicit else deadlines.auto) / 1000
        if explicit:
            await self._engine.start()  # someone who asks may want another try after a failure
        completer = await self._engine.completer(deadline - time.monotonic())
        started = time.monotonic()
        remaining = max(deadline - started, 0.001)
        try:
            completion = await asyncio.wait_for(
                complete_context(
                    completer,
                    context,
                    self._settings,
                    explicit=explicit,
                    document=snapshot.document,
                    client=self._client,
                    deadline_ms=remaining * 1000,
                    count_new_errors=self._error_counter(snapshot),
                ),
                remaining + _ENGINE_GRACE_S,
            )
        except asyncio.TimeoutError:
            raise EngineUnavailableError("the engine did not answer in time") from None
        self._debounce.observe((time.monotonic() - started) * 1000)
        if completion.suggestions:
            history = self._shown.setdefault(snapshot.document, deque(maxlen=HISTORY))
            history.appendleft(_Shown(context, completion.suggestions, explicit))
        return completion

    def _error_counter(self, snapshot: Snapshot) -> ErrorCounter:
        # The model's window, cut inside a class, would look broken by itself.
        surroundings = context_at(
            snapshot.text,
            snapshot.offset,
            language=snapshot.language,
            prefix_chars=CHECKED_CHARS,
            suffix_chars=CHECKED_CHARS,
        )
        return partial(self._checker.new_errors_in, surroundings)

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

    def _debounce_s(self) -> float:
        setting = self._settings.debounce_ms
        return (self._debounce.delay_ms if setting == "adaptive" else setting) / 1000


HISTORY = 16
"""Answers remembered per document: going back a few edits finds the old suggestion again."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """Suggestions and exactly where they were made."""

    context: InfillContext
    suggestions: Sequence[Suggestion]
    explicit: bool

    def after_typing(self, now: InfillContext) -> tuple[Suggestion, ...]:
        """What is left of the suggestions if the user typed their beginning, else nothing."""
        then = self.context
        if now.suffix != then.suffix or not now.prefix.startswith(then.prefix):
            return ()
        if (now.language, now.starts_file, now.eol) != (then.language, then.starts_file, then.eol):
            return ()
        typed = now.prefix[len(then.prefix) :].replace("\n", now.eol)
        return tuple(
            replace(s, text=s.text[len(typed) :], texts=(s.text[len(typed) :], *s.texts[1:]))
            for s in self.suggestions
            if s.text.startswith(typed) and s.text[len(typed) :].strip()
        )


class AdaptiveDebounce:
    """Waits half of what an answer has been taking, within 40 to 150 ms.

    A fast engine is asked almost at once; a slow one is spared the requests that the next
    keystroke would cancel, at the price of answers half as late again at most.
    """

    _LOWEST_MS, _HIGHEST_MS = 40.0, 150.0
    _NEWEST_WEIGHT = 0.3

    def __init__(self) -> None:
        self._latency_ms: float | None = None

    def observe(self, latency_ms: float) -> None:
        """Take one engine latency, in milliseconds, into the running mean."""
        if self._latency_ms is None:
            self._latency_ms = latency_ms
        else:
            self._latency_ms += self._NEWEST_WEIGHT * (latency_ms - self._latency_ms)

    @property
    def delay_ms(self) -> float:
        """How long to wait for a pause in the typing, in milliseconds."""
        latency_ms = 2 * self._LOWEST_MS if self._latency_ms is None else self._latency_ms
        return min(max(latency_ms / 2, self._LOWEST_MS), self._HIGHEST_MS)
