"""Syntax repair: from where the parser stumbles, a text is written again, and otherwise.

The engine is asked to go on behind what is right, and not to begin as any text did that turned out
wrong: it says what comes next best. Prefix and suffix are those of the first request, and it has
read the text up to there, so nothing is encoded again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsp_server.check.brackets import Balance
from lsp_server.check.confidence import confidence_of
from lsp_server.check.syntax import Fault, SyntaxPlace
from model.api import MAX_AVOIDED, Candidate, Completer, CompletionError, InfillRequest

if TYPE_CHECKING:
    from lsp_server.ask.completion import Draft

_ATTEMPTS = 2
"""Candidates a round: engines that cannot avoid a text might say the same again."""
_MOST_OF = 0.6
"""A fault that covers more of the text than this tells nothing of where it is broken."""
_WORD = re.compile(r"\w+|\s+|[^\w\s]")

Check = Callable[[Candidate], "Draft | None"]
"""What is left of a candidate, its syntax checked; None for nothing."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Repairs candidates of one request, within that request's deadline."""

    completer: Completer
    request: InfillRequest
    place: SyntaxPlace
    check: Check
    rounds: int
    started: float
    """`time.monotonic()` when the request was made."""

    async def of(self, draft: Draft) -> Draft | None:
        """A draft with as few syntax errors as `rounds` rounds get `draft` to; None where that are
        not fewer, or where the model is not sure enough of it.

        Only `CancelledError` leaves: an engine that refuses leaves the text as it is.
        """
        best, tried, since_better = draft, [draft.texts[0]], 0
        for _ in range(self.rounds):
            remaining_ms = self._remaining_ms()
            if remaining_ms is not None and remaining_ms <= 0:
                break
            text = best.texts[0]
            cut = await asyncio.to_thread(self._right_part, text, since_better)
            try:
                candidates = await self._written_again(best, cut, tried, remaining_ms)
            except CompletionError:
                break
            since_better += 1
            for candidate in candidates:
                tried.append(candidate.text)
                checked = await asyncio.to_thread(self.check, candidate)
                if checked and (checked.new_syntax_errors or 0) < (best.new_syntax_errors or 0):
                    best, since_better = checked, 0
            if not best.new_syntax_errors:
                break
        return None if best is draft else best

    def _right_part(self, text: str, widen: int) -> int:
        """How much of `text` is right: up to the word that the parser stumbles over first, or
        `widen` words less. Where it does not say, the half of it; the later, the less."""
        faults = self._faults(text, widen)
        words = [match.start() for match in _WORD.finditer(text) if match.group().strip()]
        if not faults or _num_characters(faults) > _MOST_OF * len(text):
            cut = len(text) // 2 ** (1 + widen)
            return max((start for start in words if start <= cut), default=0)
        start, end = faults[0]
        before = [word for word in words if word <= start]
        if start == end:  # something is missing here
            before.append(start)
        return before[-1 - widen] if widen < len(before) else 0

    def _faults(self, text: str, widen: int) -> Sequence[Fault]:
        """Where the parser stumbles. Of a fault that covers most of the text: its end, where it
        leaves brackets open; else of the first line that is wrong whatever comes after it the end,
        and, when that has been tried, all."""
        faults = self.place.faults((text,))[0]
        if _num_characters(faults) <= _MOST_OF * len(text):
            return faults
        if Balance.of(text, self.request.language).opened:
            return ((len(text), len(text)),)
        start = 0
        for line in text.splitlines(keepends=True)[:-1]:
            end = start + len(line.rstrip("\n"))
            if self.place.new_errors((text[:end],)):
                return ((start if widen else end, end),)
            start += len(line)
        return faults

    def _remaining_ms(self) -> float | None:
        if self.request.deadline_ms is None:
            return None
        return self.request.deadline_ms - 1000 * (time.monotonic() - self.started)

    async def _written_again(
        self, draft: Draft, cut: int, tried: Sequence[str], deadline_ms: float | None
    ) -> list[Candidate]:
        """Candidates that begin with `cut` characters of the draft, and go on as no text did that
        was tried."""
        head, given = draft.texts[0][:cut], len(self.request.typed)
        avoid = [text[cut:] for text in reversed(tried) if text.startswith(head) and text[cut:]]
        kept = confidence_of(draft.candidate, cut) if cut else 1.0
        least = self.request.min_confidence
        request = replace(
            self.request,
            typed=self.request.typed + head,
            draft="",
            avoid=tuple(dict.fromkeys(avoid))[:MAX_AVOIDED],
            # What is right as far as it goes is not whole yet.
            max_lines=None if cut == len(draft.texts[0]) else self.request.max_lines,
            candidates=_ATTEMPTS,
            deadline_ms=deadline_ms,
            min_confidence=min(least / kept, 1.0) if kept > 0 else least,
        )
        result = await self.completer.complete(request)
        return [_joined(draft, head, kept, candidate, given) for candidate in result.candidates]


def _joined(draft: Draft, head: str, kept: float, rest: Candidate, given: int) -> Candidate:
    """The candidate of a first part, of a confidence of `kept`, and of what was written behind it.

    `rest` begins with `given` characters that no text here has, and with `head`.
    """
    text, confidence = rest.text[given:], kept * rest.confidence
    if not rest.token_ends:
        return Candidate(texts=(text,), confidence=confidence, finished=rest.finished)
    first = draft.candidate
    if first.text.startswith(head) and first.token_ends:
        count = sum(end < len(head) for end in first.token_ends) + bool(head)
        ends = tuple(min(end, len(head)) for end in first.token_ends[:count])
        probabilities = first.probabilities[: len(ends)]
    else:  # it was brought into the document's style, or the engine does not tell tokens apart
        ends, probabilities = ((len(head),), (kept,)) if head else ((), ())
    return Candidate(
        texts=(text,),
        confidence=confidence,
        finished=rest.finished,
        probabilities=(*probabilities, *rest.probabilities),
        token_ends=(*ends, *(end - given for end in rest.token_ends)),
    )


def _num_characters(spans: Sequence[Fault]) -> int:
    return sum(end - start for start, end in spans)
