"""A real engine process that says what a script tells it to: no model is in it.

The "model directory" is a JSON file that maps the end of the text before a hole to its fills, the
best first. The longest end that matches counts; a hole that matches none stays empty.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from model.api import Candidate, CompletionError, Frame, FrameListener, InfillRequest, InfillResult
from model.serving.__main__ import parse_args, run


class ScriptedCompleter:
    """Looks each hole up in the script."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self._script = script

    async def complete(
        self, request: InfillRequest, *, on_frame: FrameListener | None = None
    ) -> InfillResult:
        typed = request.typed
        holes = [self._fills(before) for before in (request.prefix + typed, *request.between)]
        holes[0] = [typed + fill for fill in holes[0]]
        if not all(holes):
            raise CompletionError("the script has nothing for this place")
        if on_frame is not None:
            for frame in frames(holes[0][0]):
                on_frame(frame)
        number = min(request.candidates, max(map(len, holes)))
        candidates = tuple(
            Candidate(
                texts=tuple(fills[min(index, len(fills) - 1)] for fills in holes),
                confidence=0.9 - index / 10,
            )
            for index in range(number)
        )
        return InfillResult(candidates=candidates, forwards=4, tokens=9, encoded_tokens=9, ms=12.0)

    def _fills(self, before: str) -> list[str]:
        """The script's fills for a hole; what stands before it may hold part of one already."""
        found: tuple[int, list[str]] = (0, [])
        for end, fills in self._script.items():
            for fill in fills:
                for length in range(len(fill)):
                    if before.endswith(end + fill[:length]) and len(end) + length > found[0]:
                        rests = [f[length:] for f in fills if f.startswith(fill[:length])]
                        found = len(end) + length, rests
        return found[1]

    async def close(self) -> None:
        pass


def frames(text: str) -> Sequence[Frame]:
    """A canvas that is filled word by word, every fourth at a time."""
    words = re.findall(r"\w+|\W", text)
    slots: list[str | None] = [None] * (len(words) + 4)
    film: list[Frame] = []
    for step in range(4):
        for index in range(step, len(words), 4):
            slots[index] = words[index]
        film.append(Frame(step=step, slots=tuple(slots)))
    return film


if __name__ == "__main__":
    sys.exit(
        run(parse_args(), lambda script: ScriptedCompleter(json.loads(Path(script).read_text())))
    )
