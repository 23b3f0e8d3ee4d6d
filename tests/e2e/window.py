"""One VS Code window, as a person at the keyboard has it. Every wait is for something to appear."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from code_server import CodeServer, holds_within

if TYPE_CHECKING:
    from playwright.sync_api import Page

EDITOR = ".monaco-editor[role='code']"
GHOST_IN_LINE = f"{EDITOR} .ghost-text-decoration"  # at the cursor
GHOST_BELOW = f"{EDITOR} .ghost-text"  # further lines
STATUS = "#mezzotint\\.mezzotint\\.mezzotint"
KEYSTROKE_MS = 80
"""About a fast typist's."""
PATIENCE_S = 60.0
"""How long anything may take on a busy machine with two cores."""

_COUNT_FRAMES = """selector => {
    window.mezzotintFrames = {shown: 0, blank: 0};
    const count = () => {
        const frames = window.mezzotintFrames;
        frames[document.querySelector(selector) ? 'shown' : 'blank'] += 1;
        frames.handle = requestAnimationFrame(count);
    };
    requestAnimationFrame(count);
}"""
_STOP_COUNTING = """() => {
    cancelAnimationFrame(window.mezzotintFrames.handle);
    return window.mezzotintFrames;
}"""


class Window:
    """A browser page with VS Code in it. `pictures` is where screenshots go."""

    def __init__(self, page: Page, server: CodeServer, pictures: Path) -> None:
        self.page = page
        self._server = server
        self._pictures = pictures
        self.document = Path()
        page.set_default_timeout(PATIENCE_S * 1000)

    def open(
        self, document: Path, *, line: int = 1, column: int = 1, workspace: Path | None = None
    ) -> None:
        """Open the document's folder, or a workspace, with the cursor at a place counted from 1."""
        self.document = document
        self.page.goto(self._server.url(document, line, column, workspace))
        if workspace is not None and not self._lists(document.parent):
            # On a busy machine code-server may open a workspace's file before it has read it, and
            # then shows a workspace without folders.
            self.page.reload()
            assert self._lists(document.parent), "the workspace has no folders"
        self.wait_for_cursor(line, column)
        self.page.locator(f"{EDITOR}.focused").wait_for()
        # Until then nothing is asked of the server.
        self.wait_for_status("Mezzotint: ready")

    def _lists(self, folder: Path) -> bool:
        """Whether the explorer shows a folder before long."""
        row = self.page.locator(".explorer-folders-view .monaco-list-row", has_text=folder.name)
        return holds_within(20, lambda: row.count() > 0)

    def go_to(self, document: Path, *, line: int, column: int) -> None:
        """Show another document of the workspace, as by its name."""
        self.press("Control+p")
        place = f"{document.name}:{line}:{column}"
        self.page.locator(".quick-input-widget input[type='text']").fill(place)
        row = ".quick-input-list .monaco-list-row.focused"
        self.page.locator(row, has_text=document.name).wait_for()
        self.press("Enter")
        self.page.locator(".tab.active", has_text=document.name).wait_for()
        self.document = document
        self.wait_for_cursor(line, column)

    def wait_for_cursor(self, line: int, column: int) -> None:
        place = f"Ln {line}, Col {column}"
        self.page.locator("#status\\.editor\\.selection", has_text=place).wait_for()

    def type(self, text: str) -> None:
        """Type at a person's speed."""
        self.page.keyboard.type(text, delay=KEYSTROKE_MS)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def run(self, title: str) -> None:
        """Run a command by its title in the palette."""
        self.press("F1")
        box = self.page.locator(".quick-input-widget input[type='text']")
        box.fill(f">{title}")
        entry = self.page.locator(".quick-input-list .monaco-list-row.focused", has_text=title)
        entry.wait_for()
        self.press("Enter")

    def ghost_text(self) -> str:
        """What is shown now, without any white space (VS Code draws it in ways of its own)."""
        parts = (self.page.locator(part) for part in (GHOST_IN_LINE, GHOST_BELOW))
        return squeeze("".join("".join(part.all_text_contents()) for part in parts))

    def wait_for_ghost(self, text: str = "") -> str:
        """Wait until ghost text, or this one, is shown; return it without white space."""
        shown = [""]

        def appears() -> bool:
            shown[0] = self.ghost_text()
            return shown[0] == squeeze(text) if text else shown[0] != ""

        assert holds_within(PATIENCE_S, appears), (
            f"ghost text {text!r} did not come, but {shown[0]!r}; status: {self.status()}"
        )
        return shown[0]

    def ask_until_ghost(self, text: str) -> None:
        """Ask again and again until this ghost text is shown: something is on its way back."""

        def appears() -> bool:
            if self.ghost_text() != squeeze(text):
                # VS Code keeps what it shows while that fits, and any answer to the same text.
                self.press("Escape", "x", "Backspace", "Alt+\\")
            return holds_within(2, lambda: self.ghost_text() == squeeze(text))

        assert holds_within(PATIENCE_S, appears), (
            f"ghost text {text!r} did not come, but {self.ghost_text()!r}; status: {self.status()}"
        )

    def count_frames(self) -> None:
        """From now on, note for each frame that the browser draws whether ghost text is in it."""
        self.page.evaluate(_COUNT_FRAMES, f"{GHOST_IN_LINE}, {GHOST_BELOW}")

    def counted_frames(self) -> dict[str, int]:
        """How many frames had ghost text (`shown`) and how many had none (`blank`)."""
        return self.page.evaluate(_STOP_COUNTING)

    def status(self) -> str:
        """What the status bar item says to a screen reader: text and tooltip."""
        return ", ".join(
            self.page.locator(STATUS).evaluate_all("items => items.map(i => i.ariaLabel)")
        )

    def wait_for_status(self, pattern: str) -> None:
        assert holds_within(PATIENCE_S, lambda: bool(re.search(pattern, self.status(), re.S))), (
            f"status is {self.status()!r}, not {pattern!r}"
        )

    def saved(self) -> str:
        """Save, and return what the file holds then."""
        self.press("Control+s")
        self.page.locator(".tab.active:not(.dirty)").wait_for()
        return self.document.read_text()

    def wait_for_saved(self, text: str) -> None:
        """Save until the file holds this text."""

        def holds() -> bool:
            self.press("Control+s")
            return holds_within(2, lambda: self.document.read_text() == text)

        assert holds_within(PATIENCE_S, holds), repr(self.document.read_text())

    def screenshot(self, name: str) -> None:
        """Keep a picture of the window."""
        self._pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self._pictures / f"{name}.png")

    def close(self) -> None:
        """Leave as a person does, so that the window's processes are told."""
        self.page.goto("about:blank")
        self.page.close()


def squeeze(text: str) -> str:
    """`text` without white space."""
    return "".join(text.split())
