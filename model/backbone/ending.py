"""Where a middle ends, by rules: what a person would not want to have read any more.

A model that fills a hole often writes on into what follows it. A middle is over where it begins to
repeat that (across indentation), behind as many lines as are wanted, and before a line that is
indented less than what was begun, unless that line closes it or goes on with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REPEATED_CHARS = 12
"""Characters, blanks not counted, of what follows the hole that have to be repeated. Fewer are
enough where nothing more follows."""
LOOKED_AT = 400
"""Characters behind the hole that are compared."""
TAB_WIDTH = 4
"""Columns that a tab stands for, as the language server counts them."""

_CLOSES = re.compile(r"[)\]}]+[;,]*|end|fi|done|esac")
_GOING_ON = ("else", "elif", "elsif", "except", "catch", "finally", "rescue", "ensure")
_BELONGS = re.compile(rf"[{{)\]}}]|(end\s+)?({'|'.join(_GOING_ON)})\b")
_LEADS = re.compile(r"\s*(#|//|/?\*|--|@)")


@dataclass(frozen=True, slots=True)
class Ending:
    """The rules for one hole."""

    following: str
    """What stands behind the hole."""
    max_lines: int | None = None
    min_indent: int | None = None
    """Columns. A line of one column less is no end where it belongs to what began there: `else`, a
    closing bracket, what stands below a comment or a decorator. Any line of less that only closes
    brackets or a block is the last one."""

    def cut(self, text: str) -> int | None:
        """How much of `text`, which may still grow, is the middle; None where it may go on."""
        found = [self._line_limit(text), self._dedent(text)[0], self._repetition(text)[0]]
        return min((at for at in found if at is not None), default=None)

    def sure(self, text: str) -> int:
        """How much of `text` will be in the middle, however it goes on."""
        cut = self.cut(text)
        return min(self._repetition(text)[1], self._dedent(text)[1]) if cut is None else cut

    def _line_limit(self, text: str) -> int | None:
        if self.max_lines is None:
            return None
        lines = text.split("\n")
        if len(lines) <= self.max_lines:
            return None
        return len("\n".join(lines[: self.max_lines]))

    def _dedent(self, text: str) -> tuple[int | None, int]:
        """Where `text` leaves its block, and from where on it may be about to."""
        if self.min_indent is None:
            return None, len(text)
        at = text.find("\n")
        while at >= 0:
            line, line_end, _ = text[at + 1 :].partition("\n")
            content = line.strip()
            indent = _columns(line)
            if not line_end and (not content or (indent < self.min_indent and _is_open(content))):
                return None, at
            if content and indent < self.min_indent:
                is_head = indent == self.min_indent - 1
                above = text[:at].rpartition("\n")[2]
                if not (is_head and (_BELONGS.match(content) or _LEADS.match(above))):
                    end = at + 1 + len(line) if _CLOSES.fullmatch(content) else at
                    return end, end
            at = text.find("\n", at + 1)
        return None, len(text)

    def _repetition(self, text: str) -> tuple[int | None, int]:
        """Where `text` begins to repeat what follows, and from where on it may be about to."""
        wanted = self.following[:LOOKED_AT]
        rest_of_line = wanted.partition("\n")[0].strip()
        wanted = "".join(wanted.split())
        if not wanted:
            return None, len(text)
        open_from = len(text)
        for start in _starts(text, rest_of_line):
            written = "".join(text[start:].split())
            shared = _shared_start(written, wanted)
            if shared >= min(REPEATED_CHARS, len(wanted)):
                return _without_blanks(text, start, in_line=bool(rest_of_line)), open_from
            if shared == len(written):
                open_from = min(open_from, _without_blanks(text, start, in_line=False))
        return None, open_from


def _columns(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(TAB_WIDTH))


def _is_open(content: str) -> bool:
    """Whether a line that is not whole yet may come to close a block, or to go on with it."""
    words = (*_GOING_ON, "end", "fi", "done", "esac")
    return bool(_CLOSES.fullmatch(content)) or any(word.startswith(content) for word in words)


def _starts(text: str, rest_of_line: str) -> list[int]:
    """Where what follows may begin: within a line if it does, else where a line begins."""
    if rest_of_line:
        found, at = list[int](), text.find(rest_of_line[0])
        while at >= 0:
            found.append(at)
            at = text.find(rest_of_line[0], at + 1)
        return found
    return [0, *(at + 1 for at, char in enumerate(text) if char == "\n")]


def _without_blanks(text: str, start: int, *, in_line: bool) -> int:
    """The end of what comes before `start`, without the line's end before it."""
    return start if in_line else len(text[:start].rstrip())


def _shared_start(one: str, other: str) -> int:
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)
