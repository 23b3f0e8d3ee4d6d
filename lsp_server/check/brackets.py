"""Whether a text closes brackets that the document closes already.

An editor that types closing brackets by itself has one waiting right of the cursor; a model that
writes it again leaves the document with one too many, on this line or lines further down. Which
brackets count, and not those of strings and comments, the syntax tree says, or else `lexis`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lsp_server.check.lexis import brackets, brackets_of_tree, certain_brackets
from lsp_server.check.syntax import SyntaxPlace

CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
CLOSERS = frozenset(CLOSER_OF.values())


@dataclass(frozen=True, slots=True)
class Balance:
    """What a text leaves open and what it closes that it did not open, by their closers."""

    closed: tuple[tuple[int, str], ...]
    """Offset and closer of each bracket that ends one from before the text, in order."""
    opened: tuple[str, ...]
    """Closers of the brackets that are open at its end, innermost last."""

    @classmethod
    def of(cls, text: str, language: str) -> Balance:
        """The balance of `text`, which may be a part of a document."""
        return cls.of_brackets(brackets(text, language))

    @classmethod
    def of_brackets(cls, found: Iterable[tuple[int, str]]) -> Balance:
        """The balance of brackets with their offsets, in order."""
        closed: list[tuple[int, str]] = []
        opened: list[str] = []
        for offset, bracket in found:
            if bracket in CLOSER_OF:
                opened.append(CLOSER_OF[bracket])
            elif opened and opened[-1] == bracket:
                opened.pop()
            elif bracket not in opened:
                closed.append((offset, bracket))
        return cls(tuple(closed), tuple(opened))


def without_doubled_closers(text: str, place: SyntaxPlace) -> str:
    """`text` up to the first bracket that closes what the document closes already; all of it where
    that is in doubt.

    A text may close what the document before it has opened as long as what comes after it still
    finds as many of its own brackets open as without the text.
    """
    if CLOSERS.isdisjoint(text) or _is_right(text, place):
        return text
    found = _brackets_around(text, place)
    if found is None:
        return text
    before = [one for one in found if one[0] < 0]
    inside = [one for one in found if 0 <= one[0] < len(text)]
    after = [one for one in found if one[0] >= len(text)]
    closed_after = [closer for _, closer in Balance.of_brackets(after).closed]
    unmatched = _unmatched(Balance.of_brackets(before).opened, closed_after)
    if unmatched and not place.context.starts_file:
        return text  # what they belong to was opened further up than we read
    ends = [offset for offset, _ in Balance.of_brackets(before + inside).closed]
    closers = sorted((offset for offset, _ in Balance.of_brackets(inside).closed), reverse=True)
    for end in closers:
        if _is_right(text[:end], place):
            return text[:end]
    for end in (len(text), *closers):
        if place.context.starts_file and any(0 <= closer < end for closer in ends):
            continue  # it closes what nobody has opened
        kept = [one for one in inside if one[0] < end]
        if _unmatched(Balance.of_brackets(before + kept).opened, closed_after) <= unmatched:
            return text[:end]
    return text


def _is_right(text: str, place: SyntaxPlace) -> bool:
    """Whether the whole document with `text` in its (first) hole parses."""
    filled = place.tree_with(text, ended=False)
    return filled is not None and not filled.tree.root_node.has_error


def _brackets_around(text: str, place: SyntaxPlace) -> list[tuple[int, str]] | None:
    """The brackets of the document with `text` in its (first) hole, their offsets in `text`; None
    where they are in doubt."""
    filled = place.tree_with(text, ended=False)
    if filled is not None:
        found = brackets_of_tree(filled.tree)
        return [(filled.in_text(offset, text), bracket) for offset, bracket in found]
    context = place.context
    following = context.between[0] if context.between else context.suffix
    found = certain_brackets(context.prefix + text + following, context.language)
    if found is None:
        return None
    return [(offset - len(context.prefix), bracket) for offset, bracket in found]


def _unmatched(opened: Iterable[str], closed: Iterable[str]) -> int:
    """How many of the closers in `closed` find none of their kind in `opened`."""
    opened, missing = list(opened), 0
    for closer in closed:
        if opened and opened[-1] == closer:
            opened.pop()
        else:
            missing += 1
    return missing
