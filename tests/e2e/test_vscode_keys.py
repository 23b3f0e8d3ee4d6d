"""Who gets the Tab key in a real VS Code: ghost text, suggestion list, snippet or a rival."""

from __future__ import annotations

from typing import Any

import pytest
from code_server import holds_within
from project import AREA, AREA_FILL, Project
from window import EDITOR, Window

SNIPPET_KEY = "Control+Alt+9"
RIVAL = "rival"

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def keybindings() -> list[dict[str, Any]]:
    """A snippet on a key; and Tab bound to something else, in files of two names."""
    rival = {"key": "tab", "command": "type", "args": {"text": RIVAL}}
    stands_back = "resourceFilename == 'modest.py' && !inlineSuggestionVisible"
    return [
        {
            "key": "ctrl+alt+9",
            "command": "editor.action.insertSnippet",
            "args": {"snippet": "f(${1:a}, ${2:b})$0"},
        },
        {**rival, "when": f"editorTextFocus && {stands_back}"},
        {**rival, "when": "editorTextFocus && resourceFilename == 'greedy.py'"},
    ]


def test_tab_takes_what_the_suggestion_list_has_selected_and_then_the_ghost_text(
    window: Window, project: Project
) -> None:
    project.script("list", {"    width": [" * height"]})
    window.open(project.document("def area(width, height):\n    wid\n"), line=2, column=8)
    window.press("Control+Space")
    row = window.page.locator(".suggest-widget.visible .monaco-list-row.focused")
    row.filter(has_text="width").wait_for()
    window.screenshot("suggestion-list")

    window.press("Tab")
    window.page.locator(".suggest-widget.visible").wait_for(state="detached")
    window.wait_for_cursor(2, 10)
    window.wait_for_ghost(" * height")
    assert window.saved() == "def area(width, height):\n    width\n"

    window.press("Tab")
    window.wait_for_saved("def area(width, height):\n    width * height\n")


def test_tab_goes_on_to_the_next_place_of_a_snippet(window: Window, project: Project) -> None:
    project.script("snippet", {"f(width": [" * 2"], "f(width, height": [" * 2"]})
    window.open(project.document("\n"), line=1, column=1)
    window.press(SNIPPET_KEY)
    window.page.locator(f"{EDITOR} .view-line", has_text="f(a, b)").wait_for()

    window.type("width")
    # Longer than an answer takes: had there been ghost text, Tab would find it.
    assert not holds_within(2, lambda: window.ghost_text() != "")
    window.press("Tab")
    window.type("height")
    window.press("Tab")
    window.wait_for_cursor(1, len("f(width, height)") + 1)

    assert window.saved() == "f(width, height)\n"


def test_another_tab_binding_that_stands_back_from_ghost_text_does(
    window: Window, project: Project
) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA, "modest.py"), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")

    window.press("Tab")
    window.wait_for_saved("def area(width, height):\n    return width * height\n")
    window.press("Tab")
    window.wait_for_saved(f"def area(width, height):\n    return width * height{RIVAL}\n")


def test_another_tab_binding_that_does_not_stand_back_wins_and_nothing_is_lost(
    window: Window, project: Project
) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA, "greedy.py"), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")

    window.press("Tab")
    window.wait_for_saved(f"def area(width, height):\n    return{RIVAL}\n")
