"""Where drafts come from. A draft costs little beside a token, and a wrong one changes nothing."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Protocol

from model.engine.draft.stream import Stream


class Drafter(Protocol):
    """Guesses how streams go on."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[list[int]]]:
        """Of each stream some ways to go on, the likeliest first, of `room` tokens at most each;
        none where there is nothing to say."""
        ...


class GuessDrafter:
    """The rest of what the request says the hole may hold, as long as it has come true."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[list[int]]]:
        """See `Drafter.draft`."""
        return [self._of(stream, room) for stream in streams]

    def _of(self, stream: Stream, room: int) -> list[list[int]]:
        tokens, guess = stream.tokens, stream.fill.guess
        if tuple(tokens) != guess[: len(tokens)]:
            return []
        rest = list(guess[len(tokens) : len(tokens) + room])
        return [rest] if rest else []


class RepetitionDrafter:
    """What followed the same tokens elsewhere in the document."""

    def draft(self, streams: Items[Stream], room: int) -> list[list[list[int]]]:
        """See `Drafter.draft`."""
        return [
            []
            if stream.fill.document is None
            else stream.fill.document.continuations(stream.tokens, room)
            for stream in streams
        ]
