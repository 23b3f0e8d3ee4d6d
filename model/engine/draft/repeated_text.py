"""What a document repeats: where the last tokens stand elsewhere in it, and what follows there.

Prompt lookup (as in llama.cpp's and vLLM's n-gram speculation), over the whole document and not
only what the model reads. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

KEY = 2
"""Tokens that a place must have in common with the end of what is written."""
MOST_PLACES = 32
"""Of places with the same key so many are compared, the nearest ones."""
LONGEST = 16
"""Tokens that a comparison looks back at most."""
TOKENS_PER_MATCH = 2
"""A longer match is trusted further: so many tokens are drafted for each that matches."""


class RepeatedText:
    """A document's tokens around a hole, indexed by every `KEY` neighbours."""

    def __init__(self, before: Items[int], after: Items[int]) -> None:
        """Tokens before the hole, and behind it, both in the document's order."""
        self._before, self._after = list(before), list(after)
        self._places: dict[tuple[int, ...], list[tuple[list[int], int]]] = {}
        # The nearest last: what is far behind the hole, up to what is just before it.
        self._index(self._after, reversed(range(KEY, len(self._after))))
        self._index(self._before, range(KEY, len(self._before)))

    def _index(self, text: list[int], ends: Iterable[int]) -> None:
        for end in ends:
            self._places.setdefault(tuple(text[end - KEY : end]), []).append((text, end))

    def continuations(self, tokens: Items[int], room: int) -> list[list[int]]:
        """What followed the last of `tokens`, which stand behind the text before the hole, at other
        places: the likeliest first, each of `room` tokens at most, no two that begin alike."""
        recent = [*self._before[-LONGEST:], *tokens][-LONGEST:]
        places = self._places.get(tuple(recent[-KEY:]), [])[-MOST_PLACES:]
        ranked = sorted(
            ((_shared_end(text, end, recent), age, text, end)
             for age, (text, end) in enumerate(places)),
            key=lambda place: place[:2],
            reverse=True,
        )  # fmt: skip
        found: dict[int, list[int]] = {}
        for shared, _, text, end in ranked:
            following = text[end : end + min(room, TOKENS_PER_MATCH * shared)]
            if following:
                found.setdefault(following[0], following)
        return list(found.values())


def _shared_end(text: list[int], end: int, recent: list[int]) -> int:
    """How many tokens before `end` are the last of `recent`."""
    length = 0
    while length < min(end, len(recent)) and text[end - 1 - length] == recent[-1 - length]:
        length += 1
    return length
