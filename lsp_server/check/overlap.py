"""What a text ends with and the document goes on with must not stand there twice."""

from __future__ import annotations

from lsp_server.check.brackets import CLOSER_OF, CLOSERS
from lsp_server.check.indentation import columns, indent_of
from lsp_server.check.repetition import is_similar

_MAX_OVERLAP = 400
"""Characters of a text's end compared with what follows; longer repeats are rare."""
_MAX_SIMILAR_LINES = 3


def without_overlap(text: str, following: str) -> str:
    """Cut from `text` what the document already has right after the cursor.

    `following` is the document after the cursor. Returns "" when nothing worth inserting is left.
    """
    rest_of_line, newline, below = following.partition("\n")
    at_line_end = not rest_of_line.strip()
    if at_line_end:
        text = text.rstrip()
    overlap = _exact(text, following)
    text = text[: len(text) - overlap]
    if at_line_end:
        text = _without_similar_lines(text, below if newline else "")
    elif not overlap:
        text = text[: len(text) - _spaceless(text, rest_of_line)]
    # A space before text that stays on the line matters, unless one is there already.
    if at_line_end or rest_of_line[0].isspace():
        text = text.rstrip()
    return text if text.strip() else ""


def _exact(text: str, following: str) -> int:
    """Length of the end of `text` that `following` begins with and that must not be doubled.

    Either whole lines of what follows, or a run of closing punctuation such as `")`.
    """
    for length in range(min(len(text), len(following), _MAX_OVERLAP), 0, -1):
        shared = following[:length]
        if not text.endswith(shared) or not shared.strip():
            continue
        is_doubled = not following[length:].partition("\n")[0].strip()
        if not _has_word(shared):  # a run of closing punctuation may end inside the line
            is_doubled = is_doubled or not any(map(str.isspace, shared))
            is_doubled = is_doubled and not _closes_own(text, len(text) - length)
        if is_doubled:
            return length
    return 0


def _spaceless(text: str, rest_of_line: str) -> int:
    """Length of the end of `text` that says the whole rest of the line, but for spaces."""
    wanted = "".join(rest_of_line.split())
    length = 0
    for character in reversed(text):
        if not wanted:
            break
        if not character.isspace():
            if character != wanted[-1]:
                return 0
            wanted = wanted[:-1]
        length += 1
    kept = len(text) - length
    is_own = not _has_word(text[kept:]) and _closes_own(text, kept)
    return 0 if wanted or is_own else length


def _has_word(text: str) -> bool:
    return any(c.isalnum() or c == "_" for c in text)


def _without_similar_lines(text: str, below: str) -> str:
    """`text` without last lines that the next lines of the document nearly equal."""
    lines = text.split("\n")
    present = [line for line in below.split("\n") if line.strip()][:_MAX_SIMILAR_LINES]
    for count in range(min(len(lines) - 1, len(present)), 0, -1):
        pairs = list(zip(lines[-count:], present[:count], strict=True))
        if all(map(_is_same_line, *zip(*pairs, strict=True))) and any(
            any(map(str.isalpha, line)) for line, _ in pairs
        ):
            return "\n".join(lines[:-count]).rstrip()
    return text


def _is_same_line(line: str, other: str) -> bool:
    return columns(indent_of(line)) == columns(indent_of(other)) and is_similar(line, other)


def _closes_own(text: str, start: int) -> bool:
    """Whether `text[start:]` closes a bracket or quote that `text[:start]` opened.

    Then it is not a double of what follows: in `print(x|)`, the candidate `, f(y)` ends with a
    bracket of its own.
    """
    opened: list[int] = []
    for index, character in enumerate(text):
        if character in CLOSER_OF:
            opened.append(index)
        elif (
            character in CLOSERS
            and opened
            and CLOSER_OF[text[opened[-1]]] == character
            and opened.pop() < start <= index
        ):
            return True
    return any(
        quote in text[start:] and text.count(quote, 0, start) % 2 for quote in ('"', "'", "`")
    )
