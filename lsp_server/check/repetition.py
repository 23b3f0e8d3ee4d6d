"""Text that says again what it or the document has just said."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import pairwise

_LOOPS = (re.compile(r"(.{3,}?)\1{5}"), re.compile(r"(.{10,}?)\1{3}"))
"""A last line that goes round in circles, after Tabby's agent: six times something of three
characters, four times something of ten. Read backwards from its end: a pattern that may begin
anywhere in the line takes a time that grows with the cube of its length."""

_SIMILAR = 0.9
_FUZZY_CHARS = 20
"""Shorter lines are the same or not: one character makes too much of a difference."""
_MOST_FUZZY_CHARS = 500
"""And longer ones, of which a comparison would take too long: the time it takes grows with more
than the square of their length, and nothing can stop it."""
_NUMBER = re.compile(r"\d+")
_COMPARED_LINES = 3
_MAX_EQUAL_LINES = 3


def is_similar(line: str, other: str) -> bool:
    """Whether two lines are equal but for white space or, in long ones, a character or two that
    are no part of a number."""
    line, other = "".join(line.split()), "".join(other.split())
    if line == other:
        return True
    shorter, longer = sorted((len(line), len(other)))
    if shorter < _FUZZY_CHARS or longer > _MOST_FUZZY_CHARS:
        return False
    if _NUMBER.findall(line) != _NUMBER.findall(other):
        return False
    matcher = SequenceMatcher(None, line, other, autojunk=False)
    return matcher.quick_ratio() >= _SIMILAR and matcher.ratio() >= _SIMILAR


def without_loops(text: str) -> str:
    """`text` up to where it begins to repeat itself; "" where it does nothing else."""
    lines = text.split("\n")
    while lines and any(loop.match(lines[-1][::-1]) for loop in _LOOPS):
        lines.pop()
    return "\n".join(_without_equal_blocks(_without_equal_lines(lines)))


def _without_equal_lines(lines: list[str]) -> list[str]:
    """Of a run of more than `_MAX_EQUAL_LINES` similar lines, the first, and nothing after it."""
    run = 1
    for index in range(1, len(lines)):
        same = bool(_words(lines[index])) and is_similar(lines[index], lines[index - 1])
        run = run + 1 if same else 1
        if run > _MAX_EQUAL_LINES:
            return lines[: index - run + 2]
    return lines


def _without_equal_blocks(lines: list[str]) -> list[str]:
    """Cut where a block of lines, between blank ones, comes a second time in a row."""
    blocks: list[tuple[int, list[str]]] = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        if blocks and blocks[-1][0] + len(blocks[-1][1]) == index:
            blocks[-1][1].append(line)
        else:
            blocks.append((index, [line]))
    for (_, earlier), (start, later) in pairwise(blocks):
        equal = len(earlier) == len(later) and all(map(is_similar, earlier, later))
        if equal and any(map(_words, later)):
            return lines[:start]
    return lines


def _words(line: str) -> list[str]:
    return re.findall(r"[^\W\d_]{2,}", line)


def repeats_following(text: str, line_prefix: str, following: str) -> bool:
    """Whether the document goes on with what `text` says.

    `line_prefix` is the cursor's line up to the cursor. Lines of brackets alone often follow each
    other: whether one is too many is for the syntax check to say.
    """
    ahead, lines = following.lstrip(), text.strip()
    if not lines.strip(")]}"):
        return False
    if ahead.startswith(lines) and not ahead[len(lines) :].partition("\n")[0].strip():
        return True
    below = following.partition("\n")[2]
    if following.partition("\n")[0].strip():
        return False  # text to the right of the cursor: not whole lines
    wanted = _content_lines(line_prefix + text)
    present = _content_lines(below)[: len(wanted)]
    return len(present) == len(wanted) > 0 and all(map(is_similar, wanted, present))


def repeats_preceding(text: str, before: str) -> bool:
    """Whether the line at the cursor would say the same words as the line above it, and no more."""
    above, _, line_prefix = before.rpartition("\n")
    line = (line_prefix + text).strip()
    return bool(_words(line)) and line == above.rstrip().rpartition("\n")[2].strip()


def _content_lines(text: str) -> list[str]:
    """The first few lines of `text` that are not blank."""
    return [line for line in text.split("\n") if line.strip()][:_COMPARED_LINES]
