"""What became of the suggestions: one line an event, in a file that never leaves this machine.

An event tells when, what, in which language, how many characters and how confident; no text, no
file names. Every window appends to the same file, so that nothing has to be merged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast, get_args

import platformdirs

from lsp_server.check.confidence import told

logger = logging.getLogger(__name__)

Kind = Literal["shown", "accepted", "partlyAccepted", "rejected"]

_MAX_BYTES = 4 * 2**20
"""When the file is larger, it becomes the older half of what is kept."""
_MAX_REMEMBERED = 256
"""Suggestions whose fate may still be reported."""


def state_directory() -> Path:
    """Where the statistics lie (MEZZOTINT_STATE_DIR overrides)."""
    override = os.environ.get("MEZZOTINT_STATE_DIR", "")
    return Path(override).absolute() if override else platformdirs.user_state_path("mezzotint")


@dataclass(slots=True)
class _Offered:
    language: str
    num_characters: int
    confidence: float
    is_shown: bool = False
    num_accepted: int = 0
    """Of `num_characters`."""
    is_begun: bool = False
    """Whether some of it was accepted, perhaps before it was last offered."""
    is_settled: bool = False


class SuggestionLog:
    """Takes note of what is offered, and writes down what becomes of it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "suggestions.jsonl"
        self._offered: dict[str, _Offered] = {}

    @property
    def file(self) -> Path:
        """Where the events are."""
        return self._file

    def offer(
        self, suggestion: str, *, language: str, num_characters: int, confidence: float
    ) -> None:
        """Remember a suggestion by its id; nothing is written until it is seen.

        What is left of one that the user types into or accepts in part is offered again, as the
        same suggestion. One that was settled comes back as a new one, to be judged once more.
        """
        offered = self._offered.pop(suggestion, None)
        if offered is None or offered.is_settled:
            offered = _Offered(language, num_characters, confidence)
        offered.num_characters, offered.num_accepted = num_characters, 0
        self._offered[suggestion] = offered
        while len(self._offered) > _MAX_REMEMBERED:
            del self._offered[next(iter(self._offered))]

    def shown(self, suggestion: str) -> None:
        """The user has seen it; further times do not count."""
        offered = self._offered.get(suggestion)
        if offered is not None and not offered.is_shown:
            offered.is_shown = True
            self._write("shown", offered, offered.num_characters)

    def accepted(self, suggestion: str) -> None:
        """The user took all of it."""
        offered = self._settle(suggestion)
        if offered is not None:
            rest = offered.num_characters - offered.num_accepted
            self._write("accepted", offered, rest, again=offered.is_begun)

    def partly_accepted(self, suggestion: str, num_characters: int) -> None:
        """The user took its first `num_characters` (counted from its start every time)."""
        offered = self._offered.get(suggestion)
        if offered is None or offered.is_settled:
            return
        added = min(num_characters, offered.num_characters) - offered.num_accepted
        if added > 0:
            again, offered.is_begun = offered.is_begun, True
            offered.num_accepted += added
            self._write("partlyAccepted", offered, added, again=again)

    def rejected(self, suggestion: str) -> None:
        """The user dismissed it, or wrote something else. What was taken in part counts as that."""
        offered = self._settle(suggestion)
        if offered is not None and not offered.is_begun:
            self._write("rejected", offered, 0)

    def reset(self) -> None:
        """Forget all events."""
        for file in (self._file, self._older):
            file.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """The events in figures, as JSON."""
        return summed(self._events(), str(self._file))

    def _settle(self, suggestion: str) -> _Offered | None:
        offered = self._offered.get(suggestion)
        if offered is None or offered.is_settled:
            return None
        offered.is_settled = True
        return offered

    @property
    def _older(self) -> Path:
        return self._file.with_suffix(".older.jsonl")

    def _write(
        self, kind: Kind, offered: _Offered, num_characters: int, *, again: bool = False
    ) -> None:
        """`again` marks what comes after a part of the same suggestion was accepted."""
        event = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "event": kind,
            "language": offered.language,
            "characters": num_characters,
            "confidence": told(round(offered.confidence, 4)),
            "again": again,
        }
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._file.exists() and self._file.stat().st_size > _MAX_BYTES:
                self._file.replace(self._older)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            logger.warning("the statistics cannot be written: %s", error)

    def _events(self) -> Iterator[Mapping[str, Any]]:
        for path in (self._older, self._file):
            with contextlib.suppress(OSError), path.open(encoding="utf-8") as file:
                for line in file:
                    with contextlib.suppress(ValueError):  # another window is still writing it
                        event: object = json.loads(line)
                        if isinstance(event, dict):
                            yield cast("Mapping[str, Any]", event)


@dataclass(slots=True)
class _Counts:
    numbers: Counter[str] = field(default_factory=lambda: Counter[str]())
    num_taken: int = 0
    """Suggestions accepted wholly or in part."""
    num_characters: int = 0

    def add(self, event: Mapping[str, Any]) -> None:
        kind, again = str(event.get("event")), bool(event.get("again"))
        if kind != "shown":
            self.num_characters += int(event.get("characters", 0))
        if kind == "partlyAccepted" and again:
            return  # a suggestion taken word by word is one
        self.numbers[kind] += 1
        self.num_taken += kind in ("accepted", "partlyAccepted") and not again


def summed(events: Iterable[Mapping[str, Any]], file: str) -> dict[str, Any]:
    """The figures of `mezzotint.statistics`. The rate is None where the client does not tell what
    it shows."""
    total, languages = _Counts(), dict[str, _Counts]()
    since: str | None = None
    for event in events:
        if event.get("event") not in get_args(Kind):
            continue
        since = since or str(event.get("time", "")) or None
        total.add(event)
        languages.setdefault(str(event.get("language")), _Counts()).add(event)
    shown = total.numbers["shown"]
    tells = shown >= max(total.num_taken, 1)
    return {
        "shown": shown,
        "accepted": total.numbers["accepted"],
        "partiallyAccepted": total.numbers["partlyAccepted"],
        "rejected": total.numbers["rejected"],
        "acceptanceRate": round(total.num_taken / shown, 4) if tells else None,
        "charactersAccepted": total.num_characters,
        "languages": {
            language: {
                "shown": counts.numbers["shown"],
                "accepted": counts.numbers["accepted"],
                "charactersAccepted": counts.num_characters,
            }
            for language, counts in sorted(languages.items())
        },
        "since": since,
        "file": file,
    }
