"""Folders to open in VS Code, and how the scripted engine is set up for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SCRIPTED_COMMAND = [sys.executable, str(Path(__file__).with_name("scripted_server.py"))]

# Whether there is a completion must depend neither on the machine's speed nor on whether a
# small model happens to be sure of one, and to write one that parses.
PATIENT: dict[str, object] = {
    "mezzotint.deadlineMs": {"auto": 60_000, "manual": 60_000},
    "mezzotint.syntaxCheck": "warn",
    "mezzotint.minConfidence": 0,
}

AREA = "def area(width, height):\n    \n"
AREA_FILL = {"    return": [" width * height"]}


class Project:
    """A folder with one document, and the script of what the engine says in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / ".vscode").mkdir(parents=True)
        self._settings: dict[str, Any] = {}

    def script(self, name: str, fills: dict[str, list[str]]) -> None:
        """Have the engine say this."""
        file = self.directory.parent / f"{self.directory.name}-{name}.json"
        file.write_text(json.dumps(fills))
        self.configure({"mezzotint.model": {"path": str(file)}})

    def configure(self, settings: dict[str, Any]) -> None:
        """Change the folder's settings, also under an open window."""
        self._settings |= settings
        file = self.directory / ".vscode" / "settings.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(self._settings))
        new.replace(file)

    def document(self, text: str, name: str = "example.py") -> Path:
        """Write the document."""
        file = self.directory / name
        file.write_text(text)
        return file
