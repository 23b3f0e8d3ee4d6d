"""The models that the user does not want downloaded: asked once, and not at every start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

_FILE = "declined-models.json"


class DeclinedModels:
    """Names of models, kept in a file of `directory`.

    A file that cannot be read holds none, and one that cannot be written is done without: the worst
    is that a question comes again.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / _FILE

    def __contains__(self, name: str) -> bool:
        return name in self._names()

    def add(self, name: str) -> None:
        """Take note of a no."""
        self._write([*self._names(), name])

    def discard(self, name: str) -> None:
        """Forget a no, if there was one."""
        names = self._names()
        if name in names:
            self._write([other for other in names if other != name])

    def _names(self) -> list[str]:
        try:
            held: Any = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return []
        names = cast("list[object]", held) if isinstance(held, list) else []
        return [name for name in names if isinstance(name, str)]

    def _write(self, names: list[str]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(".new")
            draft.write_text(json.dumps(sorted(set(names))), "utf-8")
            draft.replace(self._file)
        except OSError:
            return
