"""What the command line shows people: colours, symbols, and a film of the denoising."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import TextIO

from model import api

_DIM, RED, GREEN, _STRUCK = "2", "31", "32", "2;9"

_PLAIN_SYMBOLS = str.maketrans(
    {"░": "?", "⏎": "\\n", "⇥": "\\t", "…": "...", "│": "|", "→": "->", "⟦": "[[", "⟧": "]]"}
)
"""Stand-ins where the stream's encoding lacks our symbols."""


class Screen:
    """A stream with a person at its end: colours and symbols as far as it has them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        is_terminal = stream.isatty()
        self.coloured = (
            is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
            # The old Windows console prints the escape codes.
            and (sys.platform != "win32" or "WT_SESSION" in os.environ)
        )
        self.width = shutil.get_terminal_size().columns if is_terminal else sys.maxsize
        """Characters a line may have."""
        try:
            "".join(map(chr, _PLAIN_SYMBOLS)).encode(stream.encoding or "utf-8")
            self._has_symbols = True
        except UnicodeEncodeError:
            self._has_symbols = False

    def styled(self, text: str, style: str) -> str:
        """`text` in a colour, where there are colours."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.coloured and text else text

    def write_lines(self, lines: Iterable[str]) -> None:
        """Show whole lines, at once."""
        for line in lines:
            print(line if self._has_symbols else line.translate(_PLAIN_SYMBOLS), file=self._stream)
        self._stream.flush()


class Film:
    """Shows each step as one line; listens to frames.

    Of a draft: what was decided in the step. Green is what was drafted and verified, plain what the
    model wrote itself, struck out what was drafted and refused; without colours they are ⟦so⟧, so,
    and ~so~. Of a canvas: masked slots are ░; what the step has committed is green, what the steps
    before it had is not.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._before: tuple[str | None, ...] = ()
        self._decided = ""

    def __call__(self, frame: api.Frame) -> None:
        """Show one frame."""
        pieces = self._canvas(frame) if frame.accepted is None else self._draft(frame)
        line = f"{frame.step:>4}  "
        room = self._screen.width - len(line)
        for text, style in pieces:
            if len(text) > room - 1:
                line += "…"
                break
            line += self._screen.styled(text, style) if style else text
            room -= len(text)
        # The engine's thread calls this. If nobody reads any more, the result's own line will
        # meet the error, in our thread.
        with contextlib.suppress(BrokenPipeError):
            if pieces:
                self._screen.write_lines([line])
        self._before = frame.slots

    def _canvas(self, frame: api.Frame) -> list[tuple[str, str]]:
        return [
            ("░", _DIM)
            if slot is None
            else (_one_line(slot), GREEN if self._is_new(index, slot) else "")
            for index, slot in enumerate(frame.slots)
        ]

    def _is_new(self, index: int, slot: str) -> bool:
        return index >= len(self._before) or self._before[index] != slot

    def _draft(self, frame: api.Frame) -> list[tuple[str, str]]:
        drafted = [slot or "" for slot in frame.slots]
        new = frame.text.removeprefix(self._decided)
        self._decided = frame.text
        before, verified, after = _parted(new, "".join(drafted[: frame.accepted]))
        refused = "".join(drafted[frame.accepted :])
        marks = ("", "", "", "") if self._screen.coloured else ("⟦", "⟧", "~", "~")
        parts = [
            (_one_line(before), ""),
            (f"{marks[0]}{_one_line(verified)}{marks[1]}" if verified else "", GREEN),
            (_one_line(after), ""),
            (f"{marks[2]}{_one_line(refused)}{marks[3]}" if refused else "", _STRUCK),
        ]
        return [part for part in parts if part[0]]


def _parted(new: str, drafted: str) -> tuple[str, str, str]:
    """What is new, around what was drafted of it. A draft may begin before the cursor, where the
    word does."""
    at = new.find(drafted)
    if at >= 0:
        return new[:at], drafted, new[at + len(drafted) :]
    shared = next((n for n in range(len(drafted), 0, -1) if new.startswith(drafted[-n:])), 0)
    return "", new[:shared], new[shared:]


_LINES_AROUND = 3
_MAX_LINE_CHARS = 200


def in_place(text: str, start: int, end: int, new: str, screen: Screen) -> list[str]:
    """The lines of `text` around `start`..`end`, with `new` there instead and made to stand out."""
    *before, head = _lines(text[:start])
    tail, *after = _lines(text[end:])
    inserted = [_printable(line) for line in _lines(new)]
    if screen.coloured:
        inserted = [screen.styled(line, GREEN) for line in inserted]
    else:
        inserted = [f"⟦{inserted[0]}", *inserted[1:]]
        inserted[-1] += "⟧"
    if len(head) > _MAX_LINE_CHARS:
        head = f"…{head[-_MAX_LINE_CHARS:]}"
    inserted[0] = _printable(head) + inserted[0]
    inserted[-1] += _shortened(tail)

    first = max(0, len(before) - _LINES_AROUND)
    shown = [
        *map(_shortened, before[first:]),
        *inserted,
        *map(_shortened, after[:_LINES_AROUND]),
    ]
    return [f"{number:>6} │ {line}" for number, line in enumerate(shown, start=first + 1)]


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _shortened(line: str) -> str:
    line = _printable(line)
    return line if len(line) <= _MAX_LINE_CHARS else f"{line[:_MAX_LINE_CHARS]}…"


def _one_line(text: str) -> str:
    return _printable(text.replace("\n", "⏎").replace("\t", "⇥"))


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    """`text` without what would command the terminal instead of being shown."""
    return _CONTROL.sub("\ufffd", text)
