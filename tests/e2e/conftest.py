"""What tests of real editors share: the installed editors, and a watch on what they start."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# importlib mode, in which pytest runs, leaves the tests' own helpers out.
sys.path.append(str(Path(__file__).parent))
from code_server import CodeServer
from default_model import put_default_model
from project import PATIENT, SCRIPTED_COMMAND, Project
from window import Window

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EXTENSION = Path(__file__).resolve().parents[2] / "editor-extension" / "mezzotint.vsix"

RUN_VARIABLE = "MEZZOTINT_TEST_RUN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWatch:
    """Finds every process started with `environment`, however far down, by a mark in it."""

    environment: dict[str, str]

    def running(self) -> dict[int, str]:
        """Command line by process id."""
        mark = f"{RUN_VARIABLE}={self.environment[RUN_VARIABLE]}".encode()
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(process.name)] = command.decode(errors="replace")
            except OSError:  # it has just ended, or is another user's
                continue
        return {pid: command for pid, command in found.items() if command}  # zombies have none

    def kill(self, *, containing: str = "") -> None:
        """SIGKILL every such process whose command line contains `containing`."""
        for pid, command in self.running().items():
            if containing in command:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@contextmanager
def watching() -> Iterator[ProcessWatch]:
    """An environment with directories of its own, so that no engine is shared with the user's.

    Its default model is a file of that size without a byte on the disk, for scripted engines."""
    home = Path(tempfile.mkdtemp(prefix="mz-"))  # short: a socket's path may have 107 bytes
    put_default_model(home / "models")
    directories = {
        f"XDG_{name}_HOME": str(home / name.lower())
        for name in ("CACHE", "CONFIG", "DATA", "STATE")
    }
    watch = ProcessWatch(
        environment={
            **os.environ,
            **directories,
            "HOME": str(home),
            "MEZZOTINT_RUNTIME_DIR": str(home),
            "MEZZOTINT_MODELS": str(home / "models"),
            RUN_VARIABLE: uuid.uuid4().hex,
        }
    )
    try:
        yield watch
    finally:
        watch.kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def watch() -> Iterator[ProcessWatch]:
    """The watch of one test."""
    with watching() as watch:
        yield watch


@pytest.fixture(scope="session")
def editors() -> Path:
    """The directory that `.ci/editor-tests` installs the editors into."""
    directory = os.environ.get("MEZZOTINT_EDITORS")
    if directory is None:
        pytest.skip("drives real editors: run .ci/editor-tests, which installs them")
    return Path(directory)


# --- VS Code ---


@pytest.fixture(scope="module")
def module_watch() -> Iterator[ProcessWatch]:
    with watching() as watch:
        yield watch


@pytest.fixture(scope="module")
def browser(editors: Path) -> Iterator[Browser]:
    sys.path.append(str(editors / "playwright"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # The sandbox does not run as root, and containers often have a small /dev/shm.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def keybindings() -> list[dict[str, Any]]:
    """The user's own; for a module to override."""
    return []


@pytest.fixture(scope="module")
def code_server(
    editors: Path,
    module_watch: ProcessWatch,
    keybindings: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CodeServer]:
    """One for all tests of this module; each opens a window and a folder of its own."""
    server = CodeServer(editors, tmp_path_factory.mktemp("vscode"), module_watch.environment)
    settings = {**PATIENT, "mezzotint.server.command": SCRIPTED_COMMAND}
    server.install(EXTENSION, settings, keybindings)
    server.start()
    yield server
    module_watch.kill()
    server.process.wait()


@pytest.fixture
def window(
    browser: Browser, code_server: CodeServer, editors: Path, request: pytest.FixtureRequest
) -> Iterator[Window]:
    """A window; its last state is kept as a picture when the test fails."""
    page = browser.new_page(viewport={"width": 1100, "height": 640})
    window = Window(page, code_server, editors / "pictures")
    failures = request.session.testsfailed
    yield window
    if request.session.testsfailed > failures:
        window.screenshot(f"failed-{request.node.name}")
    window.close()


@pytest.fixture
def own_server(
    editors: Path, watch: ProcessWatch, tmp_path: Path
) -> Iterator[Callable[..., CodeServer]]:
    """Starts a VS Code with settings of one's own, which may ask whether folders are trusted."""
    servers: list[CodeServer] = []

    def start(settings: dict[str, Any], *, trusts_all: bool = True) -> CodeServer:
        server = CodeServer(editors, tmp_path / "vscode", watch.environment)
        servers.append(server)
        server.install(EXTENSION, {**PATIENT, **settings})
        server.start(trusts_all=trusts_all)
        return server

    yield start
    watch.kill()
    for server in servers:
        server.process.wait()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty one."""
    return Project(tmp_path / "project")
