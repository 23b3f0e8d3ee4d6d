"""An infill as questions to an engine that fills one hole at a time, token by token or at once.

What such an engine cannot do is done in another way, or refused:

* `typed` goes to the end of the prompt and is put before the answer again.
* Several holes are filled in turn, each in sight of the ones before it, with nothing in the holes
  after it; only the best fill of each, so that there is one candidate.
* Further candidates are further questions, drawn at `temperature`.
* A deadline ends the answer where it is; where nothing has come, that is an error.
* `steps`, `policy` and what belongs to them say how to denoise, and the budgets in tokens what
  our own engine reads: they make no difference. There are no frames. `length_of` is refused: it
  measures our own engine.
* A confidence is the product of the tokens' probabilities, without the end's, which no engine
  tells; NaN where it tells none.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from model.api import (
    Candidate,
    EngineHealth,
    EngineOverloadedError,
    EngineUnavailableError,
    FrameListener,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
    SupersededError,
)
from model.serving.remote.dialect import Dialect, Gap, Piece, Token
from model.serving.remote.link import ComplaintError, KeyRefusedError, Link

_LONGEST_S = 120.0
"""How long an answer without a deadline may take."""


class RemoteEngine:
    """An `EngineConnection` to what `dialect` speaks to, over `link`."""

    def __init__(self, link: Link, dialect: Dialect) -> None:
        self._link = link
        self._dialect = dialect
        self._running: dict[tuple[str, str], asyncio.Task[InfillResult]] = {}
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        """Fill the holes of `request`, without frames; cancelling hangs up.

        Raises a `CompletionError`.
        """
        if request.length_of is not None:
            raise InvalidRequestError(
                "length_of tells the length of a hole in our own tokens, which a remote engine "
                "does not know"
            )
        if not request.document:
            return await self._guarded(request)
        name = (request.client, request.document)
        older = self._running.get(name)
        if older is not None:
            older.cancel()
        task = asyncio.create_task(self._guarded(request))
        self._running[name] = task
        try:
            # Unlike `await task`, this tells our own cancellation from the task's.
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            if self._running.get(name) is task:
                del self._running[name]
        if task.cancelled():
            raise SupersededError("a newer request of the same document took this one's place")
        return task.result()

    async def health(self) -> EngineHealth:
        """Ask how the engine is. Raises a `CompletionError`."""
        return await self._dialect.health(self._link)

    async def hold_lease(self) -> None:
        """Wait until a request has shown that the engine is gone, or takes our key no more.

        It needs no lease, and asking all the time would cost somebody. Raises the request's error.
        """
        await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Hang up on everything. Idempotent."""
        self._lost.cancel()
        await self._link.close()

    async def _guarded(self, request: InfillRequest) -> InfillResult:
        """The result of `request`; what shows that the engine is lost ends the lease."""
        try:
            return await self._filled(request)
        except (EngineUnavailableError, KeyRefusedError) as error:
            if not self._lost.done():
                self._lost.set_exception(error)
                self._lost.exception()  # perhaps nobody holds a lease; that is no mistake
            raise

    async def _filled(self, request: InfillRequest) -> InfillResult:
        started = time.monotonic()
        limit_s = _LONGEST_S if request.deadline_ms is None else request.deadline_ms / 1000
        until = started + limit_s
        if request.between:
            answers = await self._holes_in_turn(request, until)
            candidates = (_joined(answers, request.typed),)
        else:
            answers = await self._candidates(request, until)
            distinct: dict[str, Candidate] = {}
            for answer in answers:
                candidate = _candidate(answer, request.typed)
                distinct.setdefault(candidate.text, candidate)
            candidates = tuple(distinct.values())
        return InfillResult(
            candidates=candidates,
            forwards=0,
            tokens=sum(answer.num_tokens for answer in answers),
            encoded_tokens=sum(answer.num_encoded for answer in answers),
            ms=(time.monotonic() - started) * 1000,
        )

    async def _holes_in_turn(self, request: InfillRequest, until: float) -> list[_Answer]:
        answers = list[_Answer]()
        prefix = request.prefix + request.typed
        for index in range(len(request.between) + 1):
            if index:
                prefix += answers[-1].text + request.between[index - 1]
            suffix = "".join(request.between[index:]) + request.suffix
            answers.append(await self._answer(_gap(request, prefix, suffix, 0), until))
        return answers

    async def _candidates(self, request: InfillRequest, until: float) -> list[_Answer]:
        """One answer a candidate, the greedy one first. One that fails costs only itself."""
        prefix = request.prefix + request.typed
        gaps = [_gap(request, prefix, request.suffix, i) for i in range(request.candidates)]
        asked = [asyncio.ensure_future(self._answer(gap, until)) for gap in gaps]
        try:
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            for task in asked:
                task.cancel()
        answers = [outcome for outcome in outcomes if isinstance(outcome, _Answer)]
        if not answers:
            # The greedy one's: what the others met with is most likely the same.
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))
        return answers

    async def _answer(self, gap: Gap, until: float) -> _Answer:
        """What the engine says to one gap by `until`."""
        answer = _Answer()
        try:
            await asyncio.wait_for(self._ask(gap, until, answer.add), until - time.monotonic())
        except asyncio.TimeoutError:
            if not answer.text:
                raise EngineOverloadedError(
                    f"{self._link.name} said nothing before the deadline; mezzotint.deadlineMs "
                    "may need more for a remote engine"
                ) from None
        return answer

    async def _ask(self, gap: Gap, until: float, add: Callable[[Piece], None]) -> None:
        """Ask, again where the engine does not know an optional field, and read the answer."""
        while True:
            body = self._dialect.body(gap)
            try:
                async with contextlib.aclosing(
                    self._link.events(self._dialect.path, body, until=until)
                ) as events:
                    async for event in events:
                        add(self._read(event))
                return
            except ComplaintError as error:
                if not self._dialect.drops(str(error)):
                    raise

    def _read(self, event: dict[str, Any]) -> Piece:
        try:
            return self._dialect.piece(event)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise EngineUnavailableError(
                f"{self._link.name} answers in a shape that is not its kind's "
                f"({type(error).__name__}); is mezzotint.engine.kind right?"
            ) from error


@dataclass(slots=True)
class _Answer:
    """As much of an answer as has come."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list[Token])
    finished: bool = False
    num_tokens: int = 0
    num_encoded: int = 0

    @property
    def told_tokens(self) -> list[Token]:
        """The tokens with their probabilities; [] where some were not told, as those that
        llama.cpp needs to make up one character, whose product would say too much."""
        # Engines count the token that ends the text, and most tell nothing of it.
        missing = self.num_tokens - len(self.tokens)
        return self.tokens if missing <= self.finished else []

    def add(self, piece: Piece) -> None:
        """Take in another piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finished = self.finished or piece.finish == "stop"
        self.num_tokens = piece.num_tokens or max(self.num_tokens, len(self.tokens))
        self.num_encoded = self.num_encoded if piece.num_encoded is None else piece.num_encoded


def _gap(request: InfillRequest, prefix: str, suffix: str, index: int) -> Gap:
    return Gap(
        prefix=prefix,
        suffix=suffix,
        max_tokens=request.max_new_tokens,
        temperature=request.temperature if index else 0.0,
        top_p=request.top_p if index else 1.0,
        seed=request.seed + index,
    )


def _candidate(answer: _Answer, typed: str) -> Candidate:
    text = answer.text.replace("\r\n", "\n").replace("\r", "\n")
    tokens = answer.told_tokens
    return Candidate(
        texts=(typed + text,),
        confidence=math.prod(token.probability for token in tokens) if tokens else math.nan,
        finished=answer.finished,
        probabilities=tuple(token.probability for token in tokens),
        token_ends=tuple(len(typed) + end for end in _token_ends(tokens, text)),
    )


def _token_ends(tokens: list[Token], text: str) -> list[int]:
    """Where each token ends in `text`, in characters; [] where the tokens do not make it up."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end in a character
    whole, ends = "", list[int]()
    for token in tokens:
        whole += decoder.decode(token.raw)
        ends.append(len(whole))
    return ends if whole + decoder.decode(b"", final=True) == text else []


def _joined(answers: list[_Answer], typed: str) -> Candidate:
    """One candidate of the fills of several holes."""
    fills = [_candidate(answer, typed if not i else "") for i, answer in enumerate(answers)]
    is_told = all(fill.probabilities for fill in fills)
    return replace(
        fills[0],
        texts=tuple(fill.text for fill in fills),
        confidence=math.prod(fill.confidence for fill in fills),
        finished=all(fill.finished for fill in fills),
        probabilities=tuple(p for fill in fills for p in fill.probabilities) if is_told else (),
        token_ends=(),
    )
