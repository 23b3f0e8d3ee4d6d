"""The keys of engines that somebody else runs: from the editor's secret store, or the environment.

A stored key belongs to one server: it is never sent to another, whatever the settings come to say.
No key is a setting, none is logged, and none is shown in a status.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

OPTION = "apiKey"
"""Among a client's initialization options: {url, key}."""

ENVIRONMENT = "MEZZOTINT_API_KEY"


class ApiKeys:
    """What the client handed over when it started us, and what the environment says."""

    def __init__(self) -> None:
        self._stored: dict[tuple[str, str, int | None], str] = {}

    def taken_from(self, options: object) -> object:
        """The initialization `options` without the key, which is kept here.

        None stands for options that held nothing else. A key of another shape is dropped.
        """
        if not isinstance(options, Mapping):
            return options
        entries = cast("Mapping[str, object]", options)
        if OPTION not in entries:
            return entries
        match entries[OPTION]:
            case {"url": str(url), "key": str(key)} if key and (origin := _origin(url)):
                self._stored[origin] = key
            case _:
                pass
        return {name: value for name, value in entries.items() if name != OPTION} or None

    def key_for(self, url: str) -> str:
        """The key for the engine at `url`: the stored one, else the environment's, else ""."""
        origin = _origin(url)
        stored = self._stored.get(origin, "") if origin else ""
        return stored or os.environ.get(ENVIRONMENT, "").strip()


def _origin(url: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of `url`; None where it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        return (parts.scheme, parts.hostname, port) if parts.hostname else None
    except ValueError:
        return None
