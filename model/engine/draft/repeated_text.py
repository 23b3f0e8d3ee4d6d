"""What a document repeats: where the last tokens stand elsewhere in it, and what follows there.

Prompt lookup (as in llama.cpp's and vLLM's n-gram speculation), over the whole document and not
only what the model reads. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

KEY = 2
"""Tokens that a place must have in common with the end of what is written."""
MOST_PLACES = 32
"""Of the places in one text with the same key so many are compared."""
LONGEST = 16
"""Tokens that a comparison looks back at most."""
TOKENS_PER_MATCH = 2
"""A longer match is trusted further: so many tokens are drafted for each that matches."""


class IndexedText:
    """A stretch of a document, indexed by every `KEY` neighbours."""

    def __init__(self, ids: Items[int]) -> None:
        self.ids = list(ids)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        for end in range(KEY, len(self.ids)):
            self._ends.setdefault(tuple(self.ids[end - KEY : end]), []).append(end)

    def ends(self, key: tuple[int, ...], *, last: bool) -> list[int]:
        """Behind which tokens a key stands: of many the last places, or the first ones, the nearest
        first."""
        found = self._ends.get(key, [])
        return found[: -MOST_PLACES - 1 : -1] if last else found[:MOST_PLACES]


class RepeatedText:
    """A document around a hole."""

    def __init__(self, before: Items[IndexedText], after: Items[IndexedText]) -> None:
        """Stretches before the hole and behind it, on both sides the nearest first."""
        self._texts = [(text, True) for text in before] + [(text, False) for text in after]
        self._end = before[0].ids[-LONGEST:] if before else []

    def continuations(self, tokens: Items[int], room: int) -> list[list[int]]:
        """What followed the last of `tokens`, which stand behind the text before the hole, at other
        places: the likeliest first, each of `room` tokens at most, no two that begin alike."""
        recent = [*self._end, *tokens][-LONGEST:]
        if len(recent) < KEY:
            return []
        key = tuple(recent[-KEY:])
        places = [
            (_shared_end(text.ids, end, recent), text.ids, end)
            for text, is_before in self._texts
            for end in text.ends(key, last=is_before)
        ]
        places.sort(key=lambda place: -place[0])  # stable: of equal ones the nearest
        found: dict[int, list[int]] = {}
        for shared, ids, end in places:
            following = ids[end : end + min(room, TOKENS_PER_MATCH * shared)]
            if following:
                found.setdefault(following[0], following)
        return list(found.values())


def _shared_end(ids: list[int], end: int, recent: list[int]) -> int:
    """How many tokens before `end` are the last of `recent`."""
    length = 0
    while length < min(end, len(recent)) and ids[end - 1 - length] == recent[-1 - length]:
        length += 1
    return length
