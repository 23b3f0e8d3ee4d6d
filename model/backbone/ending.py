"""Where a middle ends, by rules: what a person would not want to have read any more.

A model that fills a hole often writes on into what follows it. A middle is over

* where it begins to repeat what follows, or, leaving that out, a later line of it;
* behind as many lines as are wanted;
* before a line that is indented less than what was begun, unless that line closes it or goes on
  with it;
* where a middle that began inside a block goes on at column 0, as the next function of a file, or
  with the fence that ends code in a conversation.

To let a repetition go on for a few tokens costs little; to take for one what only looks like it
spoils an answer. So a repetition has to be long, or to end where what it repeats ends, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

REPEATED_CHARS = 12
"""Characters, blanks not counted, of what follows the hole that have to be repeated, and all of
its first line. Fewer are enough where the line, or all that follows, ends there."""
LONG_REPEATED_CHARS = 24
"""So many where the line is indented otherwise than the one that follows, or is a later one."""
LOOKED_AT = 400
"""Characters behind the hole that are compared."""
LIKE = 0.8
"""So much of two lines has to be the same for one to stand in place of the other,"""
LIKE_START = 3
"""and so many of their first characters."""
MAX_LINES = 12
"""Lines behind the hole that a middle may go on with."""
FENCE = "```"
TAB_WIDTH = 4
"""Columns that a tab stands for, as the language server counts them."""

_CLOSES = re.compile(r"[)\]}]+[;,]*|end|fi|done|esac")
_GOING_ON = ("else", "elif", "elsif", "except", "catch", "finally", "rescue", "ensure")
_BELONGS = re.compile(rf"[{{)\]}}]|(end\s+)?({'|'.join(_GOING_ON)})\b")
_LEADS = re.compile(r"\s*(#|//|/?\*|--|@)")


_CLOSERS = ")]}"
_HEAD_WORDS = ("else", "elif", "except", "finally", "if", "for", "while", "with", "try")
_HEADS = (":", "{", "(")
"""What a line ends with that begins a block."""

Found = tuple[int | None, int]
"""Where a text ends by a rule, and from where on that rule may yet end it."""


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
    before: str = ""
    """What stands before the hole, its last line at least."""

    def cut(self, text: str) -> int | None:
        """How much of `text`, which may still grow, is the middle; None where it may go on."""
        found = [self._line_limit(text), *(cut for cut, _ in self._rules(text))]
        return min((at for at in found if at is not None), default=None)

    def sure(self, text: str) -> int:
        """How much of `text` will be in the middle, however it goes on."""
        cut = self.cut(text)
        if cut is not None:
            return cut
        # Blanks go where the next line is not wanted.
        return min(len(text.rstrip()), *(open_from for _, open_from in self._rules(text)))

    def _rules(self, text: str) -> tuple[Found, ...]:
        return self._dedent(text), self._outside(text), self._repetition(text)

    def _line_limit(self, text: str) -> int | None:
        if self.max_lines is None:
            return None
        lines = text.split("\n")
        if len(lines) <= self.max_lines:
            return None
        return len("\n".join(lines[: self.max_lines]))

    def _dedent(self, text: str) -> Found:
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

    # ---- outside ---------------------------------------------------------------------------

    def _outside(self, text: str) -> Found:
        """Where `text` leaves the block that it began in for column 0, or the code altogether."""
        has_fences = FENCE in self.before or FENCE in self.following
        is_inside = self._began_inside(text)
        at = text.find("\n")
        while at >= 0:
            line, line_end, _ = text[at + 1 :].partition("\n")
            content = line.strip()
            if content.startswith(FENCE) and not has_fences:
                return self._end_before(text, at + 1), len(text)
            if not line_end and (
                not content or FENCE.startswith(content) or (is_inside and _is_open(content))
            ):
                open_from = min(at + 1, self._fitting(text, at + 1)[1])
                return None, self._end_before(text, open_from)
            if (
                is_inside
                and content
                and not _columns(line)
                and not _CLOSES.fullmatch(content)
                and not _BELONGS.match(content)
                and _depth(text[:at]) <= 0
            ):
                return self._end_before(text, self._fitting(text, at + 1)[0]), len(text)
            at = text.find("\n", at + 1)
        return None, self._end_before(text, self._fitting(text, len(text))[1])

    def _fitting(self, text: str, end: int) -> tuple[int, int]:
        """`end`, or where an earlier line ends, if what follows belongs to a block that `text` has
        begun and left again, or left: behind that line it is indented as it has to be. And from
        where on lines may yet go for that reason."""
        after = _following(self.following)
        if not self._is_line_wise or not after.lines:
            return end, end
        wanted, own = after.lines[0].columns, self.before.rpartition("\n")[2]
        at, fits, last_fit, head, open_from = 0, True, end, end, end
        for line in text[:end].split("\n"):
            whole = line if at else own + line
            at = min(at + len(line) + 1, end)
            content = whole.strip()
            # The last line may be unfinished, so that it is no head yet, or will be none.
            open_from = head if fits else min(head, last_fit)
            if content and _columns(whole) < wanted and not _CLOSES.fullmatch(content):
                open_from = min(head, last_fit)
                fits = content.endswith(_HEADS)
                head = at if fits else head
            if content and fits:
                last_fit = at
        return end if fits else min(head, last_fit), open_from

    def _began_inside(self, text: str) -> bool:
        first = self.before.rpartition("\n")[2] + text
        return _columns(first.lstrip("\n").partition("\n")[0]) > 0

    def _end_before(self, text: str, line_start: int) -> int:
        """The end of the last line before `line_start` that is not blank, behind its line end
        where what follows begins a line of its own."""
        end = len(text[:line_start].rstrip())
        return text.find("\n", end, line_start) + 1 if line_start and self._begins_line else end

    # ---- repetition ------------------------------------------------------------------------

    def _repetition(self, text: str) -> Found:
        """Where `text` begins to repeat what follows, and from where on it may be about to."""
        after = _following(self.following)
        written, places = _dense(text)
        open_from = len(text)
        for index, line_start in self._starts(text, written, places):
            end = self._end_at(text, places[index], line_start)
            for number, line in enumerate(
                after.lines if line_start is not None else after.lines[:1]
            ):
                shared = _shared_start(written, index, after.dense, line.at)
                if not shared or (number and not line_start):
                    continue
                if number and line_start:
                    end = self._end_of_likes(text, line_start, number)
                is_deeper = bool(line_start) and line.columns < _columns(
                    text[line_start : places[index] + 1]
                )
                if is_deeper or (number and line_start):
                    end = self._end_before_head(text, end)
                if self._is_repeated(text, (written, places), index, line_start, number, shared):
                    return end, open_from
                is_closer = line_start is None and written[index] in _CLOSERS
                if index + shared == len(written) or (
                    is_closer and "\n" not in text[places[index] :]
                ):
                    open_from = min(open_from, end)
        return None, min(open_from, self._end_of_doubtful(text))

    def _starts(
        self, text: str, written: str, places: list[int]
    ) -> Iterator[tuple[int, int | None]]:
        """Where what follows may begin: its index in `written`, and where its line begins, if the
        rest of a line cannot follow."""
        after = _following(self.following)
        if not after.lines:
            return
        if self._is_line_wise:
            for index, at in enumerate(places):
                line_start = text.rfind("\n", 0, at) + 1
                if not index or places[index - 1] < line_start:
                    yield index, line_start
            return
        for index, char in enumerate(written):
            if char == after.dense[0]:
                yield index, None

    @property
    def _begins_line(self) -> bool:
        """Whether what follows begins a line of its own, so that the middle ends with a line."""
        after = _following(self.following)
        if not after.rest_of_line or after.rest_of_line.startswith(("#", "//")):
            return False
        if len(after.blanks) > 1 or "\t" in after.blanks:
            return True
        is_word = after.rest_of_line[0].isalnum() or after.rest_of_line[0] in "_@"
        return self.before.endswith("\n") and not after.blanks and is_word

    @property
    def _is_line_wise(self) -> bool:
        """Whether what follows begins with a line of its own, be it the next one."""
        return self._begins_line or not _following(self.following).rest_of_line

    def _end_at(self, text: str, at: int, line_start: int | None) -> int:
        """Where the middle ends if what follows is repeated from `at` on."""
        if line_start is not None:
            return self._end_before(text, line_start)
        blanks = _following(self.following).blanks
        return at - len(blanks) if text[:at].endswith(blanks) else at

    def _end_before_head(self, text: str, end: int, *, is_open: bool = False) -> int:
        """`end`, or where the line before it ends that begins a block (`else:`), if what
        follows is not indented as that block. With `is_open` that line may be unfinished."""
        kept = text[:end].rstrip()
        start = kept.rfind("\n") + 1
        content = kept[start:].lstrip()
        is_head = content.startswith(_HEAD_WORDS) and (is_open or content.endswith(":"))
        if is_open and content:
            is_head = is_head or any(word.startswith(content) for word in _HEAD_WORDS)
        if start and is_head:
            wanted = _following(self.following).lines[0].columns
            return self._end_before(text, start) if wanted <= _columns(kept[start:]) else end
        return end

    def _end_of_likes(self, text: str, line_start: int, number: int) -> int:
        """Where the middle ends if a later line of what follows is repeated from `line_start` on:
        before what stands there in place of the lines that come before that one."""
        after = _following(self.following)
        for line in reversed(after.lines[:number]):
            end = len(text[:line_start].rstrip())
            start = text.rfind("\n", 0, end) + 1
            stands_there = _dense(text[start:end])[0]
            if not _is_like(stands_there, after.dense[line.at : line.at + line.size]):
                break
            line_start = start
        return self._end_before(text, line_start)

    def _end_of_doubtful(self, text: str) -> int:
        """What is left of `text` should its last lines turn out to stand in place of the next."""
        if not self._is_line_wise:
            return len(text)
        after, line_start = _following(self.following), text.rfind("\n") + 1
        unfinished = _dense(text[line_start:])[0][:LIKE_START]
        if not after.lines:
            return len(text)
        ends = [self._end_before_head(text, len(text), is_open=True)]
        for number, line in enumerate(after.lines[:-1]):
            begins = after.dense[line.at : line.at + line.size][:LIKE_START]
            if not unfinished:
                ends.append(self._end_of_likes(text, line_start, number + 1))
            elif begins.startswith(unfinished):
                ends.append(self._end_of_likes(text, line_start, number))
        return min(ends)

    def _is_repeated(
        self,
        text: str,
        dense: tuple[str, list[int]],
        index: int,
        line_start: int | None,
        number: int,
        shared: int,
    ) -> bool:
        """Whether `shared` characters from `index` on are enough for the line of that number."""
        (written, places), after = dense, _following(self.following)
        line, at = after.lines[number], places[index]
        if written[index] in _CLOSERS:
            if number or _depth(text[:at]) > 0:
                return False  # it closes what the text itself has opened
            # Nothing can be closed twice.
            if line_start and _columns(text[line_start : at + 1]) == line.columns:
                return shared >= line.size
            if line_start is None and _is_last_of_line(text, at):
                return True

        def ends_line(count: int) -> bool:
            behind = index + count
            rest = text[places[behind - 1] + 1 :]
            return rest.lstrip(" \t").startswith(("\n", "#", "//"))

        is_all = line.at + shared == len(after.dense) and after.is_all
        if line_start is None:
            return shared >= max(REPEATED_CHARS, min(line.size, LONG_REPEATED_CHARS)) or (
                shared >= line.size and (shared >= REPEATED_CHARS or ends_line(line.size))
            )
        own = self.before.rpartition("\n")[2] if not line_start else ""
        is_known = bool(line_start or self.before)
        is_same = not is_known or _columns(own + text[line_start : at + 1]) == line.columns
        if number and not is_same:
            return False
        if is_all and shared >= line.size:
            return shared >= LONG_REPEATED_CHARS or (
                is_same and (shared >= REPEATED_CHARS or (not number and ends_line(shared)))
            )
        if not is_same or number or shared >= LONG_REPEATED_CHARS:
            return shared >= max(line.size, LONG_REPEATED_CHARS)
        # A line alike may follow one alike: what counts are whole lines.
        ends = (each.at + each.size for each in after.lines)
        return max((end for end in ends if end <= shared), default=0) >= REPEATED_CHARS


@dataclass(frozen=True, slots=True)
class _Line:
    """A line behind the hole that is not blank."""

    at: int
    """Where it begins, in characters that are not blank."""
    size: int
    """How many of these it has."""
    columns: int
    """Of its indentation."""


@dataclass(frozen=True, slots=True)
class _Following:
    """What stands behind the hole, as repetitions are held against it."""

    dense: str
    """Its characters that are not blank."""
    lines: tuple[_Line, ...]
    blanks: str
    """Between the hole and what follows in its line."""
    rest_of_line: str
    """Of the hole's own line; empty where the next one follows."""
    is_all: bool
    """Whether `dense` goes to the end of the text."""


@lru_cache(64)
def _following(text: str) -> _Following:
    looked_at = text[:LOOKED_AT]
    lines, dense = list[_Line](), ""
    for line in looked_at.split("\n"):
        content = "".join(line.split())
        if content and len(lines) < MAX_LINES:
            lines.append(_Line(len(dense), len(content), _columns(line)))
        dense += content
    first = looked_at.partition("\n")[0]
    return _Following(
        dense=dense,
        lines=tuple(lines),
        blanks=first[: len(first) - len(first.lstrip())],
        rest_of_line=first.strip(),
        is_all=not text[LOOKED_AT:].strip(),
    )


def _dense(text: str) -> tuple[str, list[int]]:
    """The characters that are not blank, and where they stand."""
    places = [at for at, char in enumerate(text) if not char.isspace()]
    return "".join(text[at] for at in places), places


def _depth(text: str) -> int:
    """Brackets that `text` opens and does not close, less those that it closes and did not open.
    Those in strings do not count; a string ends with its line at the latest."""
    depth, quote, is_escaped = 0, "", False
    for char in text:
        if is_escaped:
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif quote:
            if char in (quote, "\n"):
                quote = ""
        elif char in "\"'`":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
    return depth


def _is_last_of_line(text: str, at: int) -> bool:
    """Whether nothing is opened behind the bracket at `at` in its line, which is whole."""
    rest, line_end, _ = text[at + 1 :].partition("\n")
    return bool(line_end) and not any(char in rest for char in "([{")


def _is_like(one: str, other: str) -> bool:
    """Whether two lines, without their blanks, are nearly the same."""
    if one[:LIKE_START] != other[:LIKE_START]:
        return False
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= LIKE


def _shared_start(one: str, start: int, other: str, other_start: int) -> int:
    """Characters that two texts share from two places on."""
    limit = min(len(one) - start, len(other) - other_start)
    return next((i for i in range(limit) if one[start + i] != other[other_start + i]), limit)


def _columns(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(TAB_WIDTH))


def _is_open(content: str) -> bool:
    """Whether a line that is not whole yet may come to close a block, or to go on with it."""
    words = (*_GOING_ON, "end", "fi", "done", "esac")
    return bool(_CLOSES.fullmatch(content)) or any(word.startswith(content) for word in words)
