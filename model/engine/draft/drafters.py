"""Where drafts come from. A draft costs little beside a token, and a wrong one changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Protocol

from model.engine.draft.stream import Stream
from model.engine.draft.tree import Draft, Drafted

GUESS_COMES_TRUE = 0.95
"""Share of the tokens of a guess that are right where the one before was; this and those below were
counted while held-out projects were typed (docs/experiments.md)."""
REPETITION_BEGINS_RIGHT = (0.75, 0.3, 0.1)
"""Of the likeliest place that a text may repeat, of the second, and of all others."""
REPETITION_GOES_ON_RIGHT = 0.88


class Drafter(Protocol):
    """Guesses how streams go on."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[Draft]]:
        """Of each stream some ways to go on, the likeliest first, of `room` tokens at most each;
        none where there is nothing to say."""
        ...


class GuessDrafter:
    """The rest of what the request says the hole may hold, as long as it has come true."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[Draft]]:
        """See `Drafter.draft`."""
        return [self._of(stream, room) for stream in streams]

    def _of(self, stream: Stream, room: int) -> list[Draft]:
        tokens, guess = stream.tokens, stream.fill.guess
        if tuple(tokens) != guess[: len(tokens)]:
            return []
        rest = guess[len(tokens) : len(tokens) + room]
        return [with_odds(rest, GUESS_COMES_TRUE, GUESS_COMES_TRUE)] if rest else []


class RepetitionDrafter:
    """What followed the same tokens elsewhere in the document."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[Draft]]:
        """See `Drafter.draft`."""
        return [self._of(stream, room) for stream in streams]

    def _of(self, stream: Stream, room: int) -> list[Draft]:
        if stream.fill.document is None:
            return []
        found = stream.fill.document.continuations(stream.tokens, room)
        last = len(REPETITION_BEGINS_RIGHT) - 1
        return [
            with_odds(tokens, REPETITION_BEGINS_RIGHT[min(n, last)], REPETITION_GOES_ON_RIGHT)
            for n, tokens in enumerate(found)
        ]


def with_odds(tokens: Iterable[int], first: float, further: float) -> Draft:
    """A draft whose first token is right so often, and each further one if those before it are."""
    return [Drafted(token, first * further**depth) for depth, token in enumerate(tokens)]
