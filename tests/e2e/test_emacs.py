"""The Emacs set-up in a real Emacs, with eglot (UTF-16) and with lsp-mode (UTF-32)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from code_server import holds_within

if TYPE_CHECKING:
    from conftest import ProcessWatch

SETUP = Path(__file__).parents[2] / "editor-extension" / "editors" / "emacs" / "mezzotint.el"
SCRIPTED_SERVER = Path(__file__).with_name("scripted_server.py")
PATIENCE_S = 60.0
STARTS = {
    "eglot": "(mezzotint-setup-eglot '(python-mode)) (find-file {document})"
    " (apply #'eglot--connect (eglot--guess-contact))",
    "lsp-mode": "(mezzotint-setup-lsp) (setq lsp-auto-guess-root t lsp-enable-snippet nil"
    " lsp-warn-no-matched-clients nil) (find-file {document}) (lsp)",
}

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


class Emacs:
    """An Emacs without a screen, spoken to through emacsclient."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._socket = directory / "emacs.sock"
        self._environment = environment
        # -Q would hide the packages that the distribution installs.
        command = ["emacs", "-q", f"--fg-daemon={self._socket}"]
        self.process = subprocess.Popen(command, env=environment)

    def wait_until_it_listens(self) -> None:
        assert holds_within(PATIENCE_S, self._socket.exists)

    def lisp(self, code: str) -> str:
        """Evaluate in the window's buffer; the value, printed."""
        command = ["emacsclient", "-s", str(self._socket), "-e"]
        done = subprocess.run(
            [*command, f"(with-current-buffer (window-buffer (selected-window)) {code})"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def string(self, code: str) -> str:
        """Evaluate code whose value is a string."""
        encoded = self.lisp(f"(base64-encode-string (encode-coding-string {code} 'utf-8) t)")
        return base64.b64decode(encoded.strip('"')).decode()

    def keys(self, keys: str) -> None:
        """Type, in the notation of `kbd`."""
        self.lisp(f"(execute-kbd-macro (kbd {json.dumps(keys)}))")

    def text(self) -> str:
        return self.string("(buffer-substring-no-properties (point-min) (point-max))")

    def wait_for_ghost(self, text: str) -> None:
        ghost = (
            "(if mezzotint--overlay (substring-no-properties"
            ' (overlay-get mezzotint--overlay \'after-string)) "")'
        )
        shown = [""]

        def appears() -> bool:
            shown[0] = self.string(ghost)
            return shown[0] == text

        assert holds_within(PATIENCE_S, appears), shown[0]


@pytest.fixture(params=["eglot", "lsp-mode"])
def emacs(
    request: pytest.FixtureRequest, editors: Path, watch: ProcessWatch, tmp_path: Path
) -> Iterator[Emacs]:
    """Has a Python document open, with the engine knowing two fills."""
    assert shutil.which("emacs"), f"run .ci/editor-tests, which installs more than {editors}"
    script = {"'🙂', ": ["width * height"], "def f():\n    ": ["total = '🙂'\n    return total"]}
    (tmp_path / "script.json").write_text(json.dumps(script))
    settings = (
        f'(:deadlineMs (:auto 60000) :syntaxCheck "warn" :model (:path "{tmp_path}/script.json"))'
    )
    (tmp_path / ".git").mkdir()  # the project's root, which lsp-mode would ask for
    document = tmp_path / "document.py"
    document.write_text("print('🙂', )\n\n\ndef f():\n    \n")
    emacs = Emacs(Path(watch.environment["MEZZOTINT_RUNTIME_DIR"]), watch.environment)
    try:
        open_document(emacs, request.param, document, settings)
        yield emacs
    finally:
        watch.kill()
        emacs.process.wait()


def open_document(emacs: Emacs, client: str, document: Path, settings: str) -> None:
    emacs.wait_until_it_listens()
    command = " ".join(json.dumps(part) for part in (sys.executable, str(SCRIPTED_SERVER)))
    start = STARTS[client].format(document=json.dumps(str(document)))
    emacs.lisp(
        f"(progn (package-initialize) (load {json.dumps(str(SETUP))})"
        f" (setq mezzotint-command '({command}) mezzotint-settings '{settings})"
        f" {start} (mezzotint-mode) t)"
    )
    connected = "(if (or (mezzotint--uses-eglot) (mezzotint--uses-lsp)) t)"
    assert holds_within(PATIENCE_S, lambda: emacs.lisp(connected) == "t")


def test_ghost_text_follows_typing_and_is_accepted_behind_an_emoji(emacs: Emacs) -> None:
    emacs.lisp("(progn (goto-char 12) t)")
    emacs.keys("DEL SPC")
    emacs.wait_for_ghost("width * height")
    emacs.keys("w i d")
    emacs.wait_for_ghost("th * height")
    emacs.keys("TAB")
    emacs.wait_for_ghost("")
    assert emacs.text().startswith("print('🙂', width * height)\n")


def test_a_word_a_line_and_the_rest_are_accepted_and_a_suggestion_dismissed(emacs: Emacs) -> None:
    emacs.lisp("(progn (goto-char (point-max)) (backward-char) t)")
    emacs.keys("x DEL")
    emacs.wait_for_ghost("total = '🙂'\n    return total")
    emacs.keys("C-<right>")
    emacs.wait_for_ghost(" = '🙂'\n    return total")
    emacs.keys("C-M-<right>")
    emacs.wait_for_ghost("\n    return total")
    assert emacs.text().endswith("def f():\n    total = '🙂'\n")
    emacs.lisp("(progn (mezzotint-dismiss) t)")
    emacs.wait_for_ghost("")
