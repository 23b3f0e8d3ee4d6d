"""The packaged extension in a real VS Code, seen through a real browser.

What is suggested comes from a script (`scripted_engine.py`), except in the tests of the shipped
model; the language server, the engine's process and everything in between are real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from code_server import CodeServer, holds_within
from project import AREA, AREA_FILL, SCRIPTED_COMMAND, Project
from window import EDITOR, PATIENCE_S, Window, squeeze

if TYPE_CHECKING:
    from conftest import ProcessWatch
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS_TO_LEAVE = 20
"""How long the language server and its engine may outlive a killed editor."""

pytestmark = [pytest.mark.editor, pytest.mark.timeout(300)]


def test_what_is_typed_brings_ghost_text_and_tab_takes_it(window: Window, project: Project) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)

    window.type("return")
    window.wait_for_ghost(" width * height")
    window.wait_for_status("Mezzotint: ready")
    window.screenshot("ghost-text")
    window.press("Tab")

    assert window.saved() == "def area(width, height):\n    return width * height\n"
    assert not window.ghost_text()


def test_a_word_and_then_a_line_are_accepted_and_the_rest_stays(
    window: Window, project: Project
) -> None:
    body = "total = width * height\n    return total"
    project.script("lines", {"    # the area\n    ": [body]})
    document = project.document("def area(width, height):\n    # the area\n    \n")
    window.open(document, line=3, column=5)

    window.ask_until_ghost(body)
    window.press("Control+ArrowRight")
    window.wait_for_cursor(3, len("    total") + 1)
    window.wait_for_ghost(body.removeprefix("total"))
    window.screenshot("partial-accept")
    window.press("Control+Alt+ArrowRight")

    # VS Code takes the line's end along.
    window.wait_for_saved(
        "def area(width, height):\n    # the area\n    total = width * height\n\n"
    )


def test_a_hole_in_the_middle_of_a_line_is_filled(window: Window, project: Project) -> None:
    project.script("middle", {"print(": ["width * height"]})
    window.open(project.document("print(, end='')\n"), line=1, column=7)

    window.ask_until_ghost("width * height")
    window.screenshot("mid-line")
    window.press("Tab")

    assert window.saved() == "print(width * height, end='')\n"


def test_typing_into_the_ghost_text_never_blanks_it(window: Window, project: Project) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")

    window.count_frames()
    window.type(" width *")
    window.wait_for_ghost(" height")
    frames = window.counted_frames()

    assert frames["shown"] > 10
    assert frames["blank"] == 0
    window.press("Tab")
    assert window.saved() == "def area(width, height):\n    return width * height\n"


def test_nothing_is_suggested_over_a_selection(window: Window, project: Project) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA + "\n\n\n"), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")

    window.press("Shift+Home")
    assert holds_within(PATIENCE_S, lambda: not window.ghost_text())
    window.press("End")
    window.ask_until_ghost(" width * height")


def test_changed_settings_take_effect_at_once(window: Window, project: Project) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")
    window.press("Escape")

    project.script("other", {"    return": [" abs(width) * abs(height)"]})
    window.ask_until_ghost(" abs(width) * abs(height)")
    window.press("Escape")

    project.configure({"mezzotint.enabled": False})
    window.wait_for_status("off|disabled")
    window.screenshot("switched-off")
    project.configure({"mezzotint.enabled": True})
    window.ask_until_ghost(" abs(width) * abs(height)")


@pytest.mark.parametrize("process", ["scripted_server.py", "scripted_engine.py"])
def test_what_was_killed_comes_back(
    window: Window, project: Project, module_watch: ProcessWatch, process: str
) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")
    window.press("Escape")
    killed = {pid for pid, command in module_watch.running().items() if process in command}
    assert killed

    module_watch.kill(containing=process)

    window.ask_until_ghost(" width * height")
    assert not killed & module_watch.running().keys()


def test_a_pause_stops_what_comes_unasked_and_can_be_ended(
    window: Window, project: Project
) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)
    window.run("Mezzotint: Pause Suggestions for a While")
    window.page.locator(".quick-input-list .monaco-list-row", has_text="15 minutes").click()
    window.wait_for_status("Paused until")

    window.type("return")
    window.ask_until_ghost(" width * height")  # asked for, it comes all the same
    window.press("Escape")
    window.run("Mezzotint: Show Menu")
    window.page.locator(".quick-input-list", has_text="Resume suggestions").wait_for()
    window.screenshot("menu")
    window.press("Enter")
    window.wait_for_status("^(?!.*Paused until)")
    window.press("Backspace")
    window.type("n")
    window.wait_for_ghost(" width * height")


HOLES = """\
def area(width, height):
    return <FILL>


def mean(values):
    return <FILL>
"""
FILLED = """\
def area(width, height):
    return width * height


def mean(values):
    return sum(values) / len(values)
"""
HOLE_FILLS = {
    "def area(width, height):\n    return ": ["width * height"],
    "def mean(values):\n    return ": ["sum(values) / len(values)"],
}


def test_every_hole_is_filled_by_one_command_and_one_undo_takes_it_back(
    window: Window, project: Project
) -> None:
    project.script("holes", HOLE_FILLS)
    window.open(project.document(HOLES))
    hints = window.page.locator(f"{EDITOR} .squiggly-hint")
    assert holds_within(PATIENCE_S, lambda: hints.count() == 2)

    window.run("Mezzotint: Fill Every Hole in This File")
    window.wait_for_saved(FILLED)
    assert holds_within(PATIENCE_S, lambda: hints.count() == 0)
    window.screenshot("holes-filled")
    window.press("Control+z")

    window.wait_for_saved(HOLES)


def test_the_quick_fix_of_a_hint_fills_that_hole_alone(window: Window, project: Project) -> None:
    project.script("holes", HOLE_FILLS)
    window.open(project.document(HOLES), line=6, column=14)
    hints = window.page.locator(f"{EDITOR} .squiggly-hint")
    assert holds_within(PATIENCE_S, lambda: hints.count() == 2)

    window.press("Control+.")
    fix = window.page.locator(".action-widget .monaco-list-row", has_text="Fill this hole")
    fix.wait_for()
    window.screenshot("quick-fix")
    fix.click()

    first, _, last = HOLES.rpartition("<FILL>")
    window.wait_for_saved(f"{first}sum(values) / len(values){last}")
    assert holds_within(PATIENCE_S, lambda: hints.count() == 1)


def test_a_fill_is_chosen_among_several_that_are_previewed(
    window: Window, project: Project
) -> None:
    project.script("several", {"    return ": ["width * height", "height * width"]})
    window.open(project.document("def area(width, height):\n    return \n"), line=2, column=12)

    window.run("Mezzotint: Fill Here")
    rows = window.page.locator(".quick-input-list .monaco-list-row")
    rows.filter(has_text="2. height * width").wait_for()
    window.press("ArrowDown")
    preview = window.page.locator(".monaco-diff-editor .modified-in-monaco-diff-editor")
    preview.locator(".view-line", has_text="height * width").wait_for()
    window.screenshot("fill-here")
    window.press("Enter")

    preview.wait_for(state="detached")
    window.wait_for_saved("def area(width, height):\n    return height * width\n")


def test_a_selection_is_filled_anew(window: Window, project: Project) -> None:
    project.script("selection", {"    return ": ["width * height"]})
    window.open(project.document("def area(width, height):\n    return None\n"), line=2, column=12)

    window.press("Shift+End")
    window.run("Mezzotint: Fill Selection")

    window.wait_for_saved("def area(width, height):\n    return width * height\n")
    window.press("Control+z")
    window.wait_for_saved("def area(width, height):\n    return None\n")


def test_the_denoising_of_a_fill_is_shown_beside_the_document_and_inserted_on_demand(
    window: Window, project: Project
) -> None:
    project.script("denoising", {"    return ": ["sum(values) / len(values)"]})
    window.open(project.document("def mean(values):\n    return \n"), line=2, column=12)

    window.run("Mezzotint: Show Denoising")
    film = window.page.frame_locator("iframe.webview.ready").frame_locator("#active-frame")
    # Whether a step is still to be seen is a matter of luck: the script's model is fast.
    film.locator("#caption", has_text=re.compile("step|done")).wait_for()
    window.screenshot("denoising")
    film.locator("#canvas", has_text="sum(values) / len(values)").wait_for()
    film.locator("#caption", has_text="done").wait_for()
    film.locator("#insert").click()

    window.wait_for_saved("def mean(values):\n    return sum(values) / len(values)\n")


def rejections(watch: ProcessWatch) -> int:
    """How many suggestions the users of all windows so far have written something else for."""
    events = Path(watch.environment["XDG_STATE_HOME"], "mezzotint").glob("*.jsonl")
    return sum(file.read_text().count('"rejected"') for file in events)


def test_writing_something_else_in_a_suggestions_place_rejects_it(
    window: Window, project: Project, module_watch: ProcessWatch
) -> None:
    project.script("area", AREA_FILL)
    window.open(project.document(AREA), line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")
    before = rejections(module_watch)

    window.type(" wi")  # is still what it says
    window.wait_for_ghost("dth * height")
    assert rejections(module_watch) == before
    window.type("x")

    assert holds_within(PATIENCE_S, lambda: rejections(module_watch) == before + 1)
    window.run("Mezzotint: Show Statistics")
    toast = window.page.locator(".notifications-toasts", has_text="you wrote something else")
    toast.wait_for()


def workspace_of(file: Path, folders: list[Path], settings: dict[str, Any]) -> Path:
    """Write a workspace of several folders."""
    paths = [{"path": str(folder)} for folder in folders]
    file.write_text(json.dumps({"folders": paths, "settings": settings}))
    return file


def servers(watch: ProcessWatch) -> set[int]:
    """The language servers' processes."""
    return {pid for pid, command in watch.running().items() if "scripted_server.py" in command}


def test_all_folders_of_a_workspace_share_a_server_and_another_folder_brings_another_one(
    window: Window, tmp_path: Path, module_watch: ProcessWatch
) -> None:
    projects = [Project(tmp_path / name) for name in ("one", "two", "three")]
    folders = [project.directory for project in projects]
    documents = [project.document(AREA, f"{project.directory.name}.py") for project in projects]
    script = tmp_path / "script.json"
    script.write_text(json.dumps(AREA_FILL))
    settings = {"mezzotint.model": {"path": str(script)}}
    workspace = workspace_of(tmp_path / "both.code-workspace", folders[:2], settings)

    others = servers(module_watch)
    window.open(documents[0], line=2, column=5, workspace=workspace)
    window.type("return")
    window.wait_for_ghost(" width * height")
    window.press("Tab")
    assert window.saved().endswith("return width * height\n")
    ours = servers(module_watch) - others
    assert len(ours) == 1

    window.go_to(documents[1], line=2, column=5)
    window.type("return")
    window.wait_for_ghost(" width * height")
    window.screenshot("multi-root")
    window.press("Tab")
    assert window.saved().endswith("return width * height\n")
    assert servers(module_watch) - others == ours

    workspace_of(workspace, folders, settings)  # as "Add Folder to Workspace" does
    assert holds_within(PATIENCE_S, lambda: not ours & servers(module_watch))
    window.wait_for_status("Mezzotint: ready")
    window.go_to(documents[2], line=2, column=5)
    window.type("return")
    window.ask_until_ghost(" width * height")


WALKTHROUGH = (
    "The server sets itself up",
    "Get the model",
    "Take what you like with Tab",
    "Fill holes",
    "Watch it being drafted and verified",
)


def test_the_walkthrough_shows_its_steps_and_ticks_off_what_happens(
    window: Window, project: Project, code_server: CodeServer
) -> None:
    project.script("area", AREA_FILL)
    project.configure({"mezzotint.server.command": ["no-such-server"]})
    window.page.set_viewport_size({"width": 1500, "height": 760})  # with room for the pictures
    window.page.goto(code_server.url(project.document(AREA), 2, 5))
    window.wait_for_status("no-such-server")

    window.run("Welcome: Open Walkthrough...")
    window.type("Get started with Mezzotint")
    row = ".quick-input-list .monaco-list-row.focused"
    window.page.locator(row, has_text="Get started with Mezzotint").wait_for()
    window.press("Enter")
    steps = window.page.locator(".getting-started-step")
    for title in WALKTHROUGH:
        steps.filter(has_text=title).wait_for()
    assert steps.count() == len(WALKTHROUGH)
    done = window.page.locator(".getting-started-step .codicon.complete")
    assert done.count() == 0

    project.configure({"mezzotint.server.command": SCRIPTED_COMMAND})
    steps.filter(has_text=WALKTHROUGH[0]).locator(".codicon.complete").wait_for()
    assert done.count() == 1

    steps.filter(has_text="Fill holes").click()
    media = window.page.frame_locator("iframe.webview.ready").frame_locator("#active-frame")
    media.get_by_text("Both holes are filled by one command").wait_for()
    # VS Code has a markup of its own for this text.
    text = "Alt+Shift+\\ fills at the cursor, or what is selected; one command fills every ... and"
    steps.filter(has_text="Fill holes").filter(has_text=text).wait_for()
    window.screenshot("walkthrough")


def ours(watch: ProcessWatch) -> list[str]:
    """Command lines of the language server's and the engine's processes."""
    return [
        command
        for command in watch.running().values()
        if "lsp_server" in command or "model.serving" in command
    ]


LINE = "    return EngineClient(socket, token)\n"
"""The line of `model/engines.py` that is taken out, to be written again."""
TYPED = "return Eng"


@pytest.mark.timeout(900)
def test_the_first_start_sets_up_a_server_and_gets_the_default_model_which_completes(
    browser: Browser,
    own_server: Callable[[dict[str, Any]], CodeServer],
    watch: ProcessWatch,
    editors: Path,
    project: Project,
    tmp_path: Path,
) -> None:
    before, line, after = (REPOSITORY / "model" / "engines.py").read_text().partition(LINE)
    assert line, "model/engines.py has changed: choose another line to write"
    document = project.document(before + "    \n" + after, "engines.py")
    watch.environment["MEZZOTINT_MODELS"] = str(tmp_path / "models")  # there is none
    server = own_server({})
    page = browser.new_page(viewport={"width": 1100, "height": 640})
    window = Window(page, server, editors / "pictures")

    page.goto(server.url(document, before.count("\n") + 1, 5))
    window.document = document
    page.locator(".notifications-toasts", has_text="setting up its server").wait_for()
    window.screenshot("first-start")
    environment = server.storage / "mezzotint.mezzotint" / "environment"
    assert holds_within(600, lambda: bool(list(environment.glob("*.sha256")))), window.status()
    question = page.locator(".notifications-toasts", has_text="Mezzotint needs a model")
    question.wait_for()
    window.screenshot("model-offer")
    question.get_by_role("button", name="Download").click()
    window.wait_for_status(r"downloading Qwen2\.5-Coder")
    window.screenshot("model-download")
    # What was downloaded is packed once, which takes a slow machine a minute.
    busy = re.compile("downloading|starting|loading")
    assert holds_within(600, lambda: not busy.search(window.status())), window.status()
    window.page.locator(".monaco-editor .view-lines").first.click()
    window.press("Control+g")
    window.type(f"{before.count(chr(10)) + 1}:5")
    window.press("Enter")
    window.wait_for_cursor(before.count("\n") + 1, 5)
    window.type(TYPED)
    ghost = window.wait_for_ghost()
    window.screenshot("default-model")
    window.press("Tab")

    written = window.saved()
    accepted = written[len(before + "    " + TYPED) : -len("\n" + after)]
    assert written == before + "    " + TYPED + accepted + "\n" + after
    assert squeeze(accepted) == ghost != ""

    assert any(str(environment) in command for command in ours(watch))
    watch.kill(containing=server.node)
    assert holds_within(SECONDS_TO_LEAVE, lambda: not ours(watch)), ours(watch)
