"""Films VS Code with the shipped model for the README: typing, a suggestion, its denoising.

`.ci/editor-tests --collect-only && python tests/e2e/make_film.py docs/mezzotint.gif`; needs Pillow.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from code_server import CodeServer, holds_within
from conftest import watching
from PIL import Image
from window import Window

REPOSITORY = Path(__file__).resolve().parents[2]
EDITORS = REPOSITORY / ".e2e"
LINE = "    return EngineClient(socket, token)\n"
TYPED = "return Eng"
SIZE = {"width": 960, "height": 400}
SETTINGS: dict[str, object] = {
    "mezzotint.server.command": [sys.executable, "-m", "lsp_server", "lsp"],
    "mezzotint.deadlineMs": {"auto": 60_000, "manual": 60_000},
    "mezzotint.maxNewTokens": 16,
    "mezzotint.candidates": {"manual": 1},
    "mezzotint.minConfidence": 0,
    "mezzotint.syntaxCheck": "warn",
    "editor.fontSize": 15,
    "workbench.activityBar.location": "hidden",
    "workbench.sideBar.location": "right",
    "window.menuBarVisibility": "hidden",
}


class Film:
    """Frames and how long each is shown."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._frames: list[Image.Image] = []
        self._durations_ms: list[int] = []

    def take(self, duration_ms: int) -> None:
        picture = Image.open(io.BytesIO(self._window.page.screenshot()))
        self._frames.append(picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=48))
        self._durations_ms.append(duration_ms)

    def save(self, path: Path) -> None:
        first, *others = self._frames
        first.save(path, append_images=others, duration=self._durations_ms, loop=0, optimize=True)


def shoot(window: Window, film: Film) -> None:
    """Type, accept, and watch the line being denoised anew."""
    film.take(800)
    for character in TYPED:
        window.type(character)
        film.take(120)
    window.wait_for_ghost()
    film.take(1800)
    window.press("Tab")
    film.take(1200)
    window.press("Home")
    for _ in range(len(TYPED)):
        window.press("ArrowRight")
    window.press("Shift+End")
    window.run("Mezzotint: Show Denoising")
    panel = window.page.frame_locator("iframe.webview.ready").frame_locator("#active-frame")
    caption = panel.locator("#caption")
    caption.wait_for()
    shown = [""]

    def is_done() -> bool:
        now = caption.text_content() or ""
        if now != shown[0]:
            shown[0] = now
            film.take(450)
        return bool(re.match("done|cancelled", now))

    if not holds_within(60, is_done):
        window.screenshot("film-failed")
        raise TimeoutError(shown[0])
    film.take(3000)


def main() -> None:
    sys.path.append(str(EDITORS / "playwright"))
    from playwright.sync_api import sync_playwright

    before, _, after = (REPOSITORY / "model" / "engines.py").read_text().partition(LINE)
    with watching() as watch, tempfile.TemporaryDirectory() as directory:
        document = Path(directory) / "project" / "engines.py"
        document.parent.mkdir()
        document.write_text(before + "    \n" + after)
        server = CodeServer(EDITORS, Path(directory) / "vscode", watch.environment)
        server.install(REPOSITORY / "editor-extension" / "mezzotint.vsix", SETTINGS)
        server.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            )
            page = browser.new_page(viewport=SIZE)
            window = Window(page, server, EDITORS / "pictures")
            window.open(document, line=before.count("\n") + 1, column=5)
            window.press("Control+b")  # the side bar is closed
            # The film begins when the model is loaded.
            assert holds_within(60, lambda: "model.serving" in str(watch.running()))
            window.wait_for_status("^sparkle")
            loading = page.locator(".statusbar-item", has_text="loading")
            assert holds_within(60, lambda: loading.count() == 0)
            film = Film(window)
            shoot(window, film)
            film.save(Path(sys.argv[1]))
            browser.close()
        watch.kill()
        server.process.wait()


if __name__ == "__main__":
    main()
