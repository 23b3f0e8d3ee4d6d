"""When a completion is made at all, and how long to wait for the typing to pause."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from lsp_server.settings import Settings


def refusal(
    path: str, language: str, settings: Settings, *, name: str, explicit: bool
) -> str | None:
    """Why the document at `path` gets no completion, in a few words; None when it gets one.

    `name`: its URI, which may name a file elsewhere than in the path. `explicit` says that a
    person asked.
    """
    if not settings.enabled:
        return "disabled"
    if not settings.enabled_for(language):
        return f"disabled for {language or 'this language'}"
    if is_excluded(path, settings) or settings.excludes(_parted(name)):
        return "excluded file"
    if not explicit and settings.trigger == "manual":
        return "completes on request only (trigger is manual)"
    return None


def is_excluded(path: str, settings: Settings) -> bool:
    """Whether the text at `path` must not reach the model, by its own name or by that of the file
    that it links to. When in doubt, yes."""
    if settings.excludes(path):
        return True
    try:
        return settings.excludes(os.path.realpath(path))
    except (OSError, ValueError):  # a name that no file can have, as of an unsaved document
        return False


_SEPARATOR = re.compile(r"""[:?#&;="'|!]+""")


def _parted(uri: str) -> str:
    """What follows the scheme, with a slash at all that may stand around a file's name: it may be
    in the host, the query or the fragment, and quoted once more in another URI."""
    return _SEPARATOR.sub("/", unquote(uri.partition(":")[2]))


_PLACEHOLDER = re.compile(
    r"\$(\d|\{\w|(TM|CURRENT|WORKSPACE|CURSOR|BLOCK_COMMENT)_[A-Z_]+\b"
    r"|(CLIPBOARD|RELATIVE_FILEPATH|RANDOM|RANDOM_HEX|UUID|LINE_COMMENT)\b)"
)
"""Places and variables of the LSP's snippets. A name in braces may be code (a shell's), but nobody
misses a suggestion there as much as a wrong one hurts."""


def is_snippet(text: str) -> bool:
    """Whether a selected completion has places to tab through: those are the editor's to fill."""
    return _PLACEHOLDER.search(text) is not None


class AdaptiveDebounce:
    """Waits half of what an answer has been taking, within 40 to 150 ms.

    A fast engine is asked almost at once; a slow one is spared the requests that the next
    keystroke would cancel, at the price of answers half as late again at most.
    """

    _LOWEST_MS, _HIGHEST_MS = 40.0, 150.0
    _NEWEST_WEIGHT = 0.3

    def __init__(self) -> None:
        self._latency_ms: float | None = None

    def observe(self, latency_ms: float) -> None:
        """Take one engine latency, in milliseconds, into the running mean."""
        if self._latency_ms is None:
            self._latency_ms = latency_ms
        else:
            self._latency_ms += self._NEWEST_WEIGHT * (latency_ms - self._latency_ms)

    @property
    def delay_ms(self) -> float:
        """How long to wait for a pause in the typing, in milliseconds."""
        latency_ms = 2 * self._LOWEST_MS if self._latency_ms is None else self._latency_ms
        return min(max(latency_ms / 2, self._LOWEST_MS), self._HIGHEST_MS)
