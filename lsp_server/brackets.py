"""Brackets of source text, outside strings and comments, and whether a text closes too many.

An editor that types closing brackets by itself has one waiting right of the cursor; a model that
writes it again leaves the document with one too many, on this line or lines further down.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lsp_server.context import InfillContext

CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
CLOSERS = frozenset(CLOSER_OF.values())

_READ_CHARS = 20_000
"""How far from the hole brackets are looked for."""

_DOUBLE, _SINGLE, _BACKTICK = (
    rf"{quote}(?:\\.|[^{quote}\\\n])*{quote}?" for quote in ('"', "'", "`")
)
_TRIPLE = r'"""(?s:.*?)(?:"""|\Z)|\'\'\'(?s:.*?)(?:\'\'\'|\Z)'
_SLASHES = r"//[^\n]*|/\*(?s:.*?)(?:\*/|\Z)"
_HASH = r"(?:^|(?<=\s))#[^\n]*"
_TEMPLATE = r"`(?s:\\.|[^`\\])*`?"
# A lone quote is a lifetime in Rust, an apostrophe in prose.
_CHARACTER = r"'(?:\\[^\n]{1,10}?|[^'\\\n])'"

_OPAQUE = {
    "python": (_TRIPLE, _DOUBLE, _SINGLE, r"#[^\n]*"),
    "ruby": (_DOUBLE, _SINGLE, _BACKTICK, _HASH),
    "shellscript": (_DOUBLE, _SINGLE, _HASH),
    "rust": (_SLASHES, r'"(?s:\\.|[^"\\])*"?', _CHARACTER),
    "go": (_SLASHES, _DOUBLE, _CHARACTER, _TEMPLATE),
    "css": (_SLASHES.replace(r"//[^\n]*|", ""), _DOUBLE, _SINGLE),
    "php": (_SLASHES, _DOUBLE, _SINGLE, _HASH),
    **dict.fromkeys(("java", "c", "cpp", "csharp"), (_SLASHES, _DOUBLE, _CHARACTER)),
    **dict.fromkeys(
        ("javascript", "javascriptreact", "typescript", "typescriptreact"),
        (_SLASHES, _DOUBLE, _SINGLE, _TEMPLATE),
    ),
}
_OPAQUE_ELSEWHERE = (_DOUBLE, _CHARACTER)
_PATTERNS = {
    language: re.compile("|".join((*opaque, r"[()\[\]{}]")), re.MULTILINE)
    for language, opaque in {**_OPAQUE, "": _OPAQUE_ELSEWHERE}.items()
}


def brackets(text: str, language: str) -> Iterator[tuple[int, str]]:
    """Offset and character of each bracket of `text` that is no part of a string or comment."""
    for match in _PATTERNS.get(language, _PATTERNS[""]).finditer(text):
        if len(match.group()) == 1 and match.group() in "()[]{}":
            yield match.start(), match.group()


@dataclass(frozen=True, slots=True)
class Balance:
    """What a text leaves open and what it closes that it did not open, by their closers."""

    closed: tuple[tuple[int, str], ...]
    """Offset and closer of each bracket that ends one from before the text, in order."""
    opened: tuple[str, ...]
    """Closers of the brackets that are open at its end, innermost last."""

    @classmethod
    def of(cls, text: str, language: str) -> Balance:
        """The balance of `text`."""
        closed: list[tuple[int, str]] = []
        opened: list[str] = []
        for offset, bracket in brackets(text, language):
            if bracket in CLOSER_OF:
                opened.append(CLOSER_OF[bracket])
            elif opened and opened[-1] == bracket:
                opened.pop()
            elif not opened:
                closed.append((offset, bracket))
        return cls(tuple(closed), tuple(opened))


def without_doubled_closers(text: str, context: InfillContext) -> str:
    """`text` up to the first bracket that closes what the document closes already.

    A text may close what the document before it has opened as long as what comes after it still
    finds as many of its own brackets open as without the text.
    """
    language = context.language
    before, after = context.prefix[-_READ_CHARS:], _following(context)[:_READ_CHARS]
    # The prefix decides whether the text begins inside a string, so both are read as one.
    open_before = Balance.of(before, language).opened
    closed_after = [closer for _, closer in Balance.of(after, language).closed]
    unmatched = _unmatched(list(open_before), closed_after)
    reads_all = context.starts_file and len(before) == len(context.prefix)
    if unmatched and not reads_all:
        return text  # what they belong to was opened further up than we read
    ends = [offset - len(before) for offset, _ in Balance.of(before + text, language).closed]
    inside = Balance.of(text, language)
    for end in (len(text), *sorted({offset for offset, _ in inside.closed}, reverse=True)):
        if reads_all and any(0 <= closer < end for closer in ends):
            continue  # it closes what nobody has opened
        opened = list(Balance.of(before + text[:end], language).opened)
        if _unmatched(opened, closed_after) <= unmatched:
            return text if end == len(text) else text[:end]
    return text


def _unmatched(opened: list[str], closed: list[str]) -> int:
    """How many of the closers in `closed` find none of their kind in `opened`."""
    missing = 0
    for closer in closed:
        if opened and opened[-1] == closer:
            opened.pop()
        else:
            missing += 1
    return missing


def _following(context: InfillContext) -> str:
    return context.between[0] if context.between else context.suffix
