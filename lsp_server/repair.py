"""Syntax repair: what the parser stumbles over is masked again and denoised once more.

No left-to-right model can do this: the rest of the candidate stays where it is, on both sides of
what is denoised anew. Each round is one request with a hole for each place where the parser
stumbles; prefix and suffix are those of the first request, so that nothing is encoded again.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lsp_server.brackets import Balance
from lsp_server.syntax import Fault, SyntaxPlace
from model.api import Candidate, Completer, CompletionError, InfillRequest

_ATTEMPTS = 2
"""Candidates a round: the greedy one might say the same again."""
_MIN_HOLE_TOKENS = 6
_MOST_OF = 0.6
"""A fault that covers more of the text than this tells nothing of where it is broken."""
_WORD = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A text with fewer syntax errors than it had."""

    text: str
    new_syntax_errors: int
    confidence: float
    """Probability of what was kept and of what took the rest's place, 0..1."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Repairs candidates of one request, within that request's deadline."""

    completer: Completer
    request: InfillRequest
    place: SyntaxPlace
    rounds: int
    started: float
    """`time.monotonic()` when the request was made."""

    async def of(self, candidate: Candidate, text: str, num_errors: int) -> Repaired | None:
        """`text`, which is left of `candidate`, with as few errors as `rounds` rounds get it to;
        None where that are not fewer than `num_errors`, or not with the confidence that the
        request wants. Lines end in `\\n`.

        Only `CancelledError` leaves: an engine that refuses leaves the text as it is.
        """
        best: Repaired | None = None
        for round_number in range(self.rounds):
            current = text if best is None else best.text
            faults = await asyncio.to_thread(self._faults, current)
            holes = _holes(current, faults, widen=round_number)
            remaining_ms = self._remaining_ms()
            if not holes or (remaining_ms is not None and remaining_ms <= 0):
                break
            kept = _kept_confidence(candidate, current, holes) if best is None else best.confidence
            try:
                filled = await self._filled(current, holes, remaining_ms)
            except CompletionError:
                break
            for new_text, confidence in filled:
                if kept * confidence < self.request.min_confidence:
                    continue  # it would not be shown, and must not keep back one that would
                errors = await asyncio.to_thread(self.place.new_errors, (new_text,)) or 0
                if errors < (num_errors if best is None else best.new_syntax_errors):
                    best = Repaired(
                        text=new_text, new_syntax_errors=errors, confidence=kept * confidence
                    )
            if best is not None and best.new_syntax_errors == 0:
                break
        return best

    def _faults(self, text: str) -> Sequence[Fault]:
        """Where the parser stumbles. Of a fault that covers most of the text: its end, where it
        leaves brackets open; else the first line that is wrong whatever comes after it."""
        faults = self.place.faults((text,))[0]
        if _num_characters(faults) <= _MOST_OF * len(text):
            return faults
        if Balance.of(text, self.request.language).opened:
            return ((len(text), len(text)),)
        start = 0
        for line in text.splitlines(keepends=True)[:-1]:
            end = start + len(line.rstrip("\n"))
            if self.place.new_errors((text[:end],)):
                return ((start, end),)
            start += len(line)
        return faults

    def _remaining_ms(self) -> float | None:
        if self.request.deadline_ms is None:
            return None
        return self.request.deadline_ms - 1000 * (time.monotonic() - self.started)

    async def _filled(
        self, text: str, holes: Sequence[Fault], deadline_ms: float | None
    ) -> list[tuple[str, float]]:
        """`text` with its holes filled anew, several ways, and how sure each filling is."""
        starts, ends = [start for start, _ in holes], [end for _, end in holes]
        kept = [text[end:start] for end, start in zip(ends[:-1], starts[1:], strict=True)]
        head, tail = text[: starts[0]], text[ends[-1] :]
        longest = max(end - start for start, end in holes)
        # The text after the last hole lies in the canvas as well, before a hole that stays unused.
        request = replace(
            self.request,
            typed=self.request.typed + head,
            between=(*kept, tail) if tail else tuple(kept),
            candidates=_ATTEMPTS,
            lengths=(),
            max_new_tokens=max(_MIN_HOLE_TOKENS, longest // 2),
            deadline_ms=deadline_ms,
        )
        result = await self.completer.complete(request)
        return [
            (_joined(request.typed, candidate.texts, kept, tail, self.request.typed), confidence)
            for candidate in result.candidates
            if (confidence := candidate.confidence) != 0  # NaN where it is not known
        ]


def _joined(typed: str, fills: Sequence[str], kept: Sequence[str], tail: str, given: str) -> str:
    """The text that the fills make, without what the first request had `given`."""
    first, *others = fills
    whole = typed + first[len(typed) :]
    for between, fill in zip(kept, others, strict=False):
        whole += between + fill
    return whole[len(given) :] + tail


def _holes(text: str, faults: Sequence[Fault], *, widen: int) -> list[Fault]:
    """What of `text` to mask: the faults, widened to whole words and by `widen` words more.

    Where they cover nearly all of it, or lie outside, the second half of it; in a later round the
    last three quarters.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    if not words:
        return []
    if not faults or _num_characters(faults) > _MOST_OF * len(text):
        cut = len(text) // 2 ** (1 + widen)
        start = next((start for start, _ in words if start >= cut), words[-1][0])
        return [(start, len(text))]
    holes: list[Fault] = []
    for start, end in faults:
        first = next((i for i, word in enumerate(words) if word[1] > start), len(words))
        last = next((i for i, word in enumerate(words) if word[1] >= end), len(words) - 1)
        first, last = max(first - widen, 0), min(last + widen, len(words) - 1)
        start = words[first][0] if first < len(words) else len(text)
        end = max(words[last][1] if end > start or widen else start, start)
        if holes and start <= holes[-1][1]:
            holes[-1] = (holes[-1][0], max(end, holes[-1][1]))
        else:
            holes.append((start, end))
    return holes


def _num_characters(spans: Sequence[Fault]) -> int:
    return sum(end - start for start, end in spans)


def _kept_confidence(candidate: Candidate, text: str, holes: Sequence[Fault]) -> float:
    """The probability of the tokens that the repair keeps."""
    if not candidate.token_ends or not candidate.text.startswith(text):
        return candidate.confidence
    starts = (0, *candidate.token_ends[:-1])
    return math.prod(
        probability
        for start, end, probability in zip(
            starts, candidate.token_ends, candidate.probabilities, strict=False
        )
        if end <= len(text) and all(end <= first or start >= last for first, last in holes)
    )
