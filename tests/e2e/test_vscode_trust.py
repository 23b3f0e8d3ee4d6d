"""A folder that is not trusted in a real VS Code: what it may not decide."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from code_server import CodeServer, holds_within
from project import AREA, AREA_FILL, SCRIPTED_COMMAND, Project
from window import PATIENCE_S, Window

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


def theirs(directory: Path) -> tuple[dict[str, Any], Path]:
    """Settings of a folder that runs a program of its own as the server; and a file that is there
    once it has run."""
    ran = directory / "ran"
    program = directory / "server"
    server = shlex.join(SCRIPTED_COMMAND)
    program.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(ran))}\nexec {server}\n")
    program.chmod(0o755)
    script = directory / "theirs.json"
    script.write_text(json.dumps({"    return": [" theirs"]}))
    settings = {
        "mezzotint.server.command": [str(program)],
        "mezzotint.model": {"path": str(script)},
        # The same again under names of which VS Code does not know that they are restricted (or,
        # of the second, did not always).
        "mezzotint.model.path": str(script),
        "mezzotint.engine": {"url": "http://127.0.0.1:1"},
    }
    return settings, ran


def test_an_untrusted_folder_chooses_neither_server_nor_model_nor_engine_until_it_is_trusted(
    browser: Browser,
    own_server: Callable[..., CodeServer],
    editors: Path,
    project: Project,
    tmp_path: Path,
) -> None:
    script = tmp_path / "users.json"
    script.write_text(json.dumps(AREA_FILL))
    settings = {
        "security.workspace.trust.startupPrompt": "never",
        "security.workspace.trust.banner": "never",
        "mezzotint.server.command": SCRIPTED_COMMAND,
        "mezzotint.model": {"path": str(script)},
    }
    server = own_server(settings, trusts_all=False)
    their_settings, ran = theirs(tmp_path)
    project.configure(their_settings)
    window = Window(
        browser.new_page(viewport={"width": 1100, "height": 640}), server, editors / "pictures"
    )

    window.open(project.document(AREA), line=2, column=5)
    window.page.locator("#status\\.workspaceTrust").wait_for()  # says "Restricted Mode"
    window.type("return")
    window.wait_for_ghost(" width * height")
    window.screenshot("untrusted")
    assert not ran.exists()

    window.run("Workspaces: Manage Workspace Trust")
    window.page.locator(".workspace-trust-editor .monaco-button", has_text="Trust").first.click()
    assert holds_within(PATIENCE_S, ran.exists), window.status()
    window.close()
