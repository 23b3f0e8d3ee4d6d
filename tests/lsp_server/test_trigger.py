"""When a completion is made at all, and how long it waits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lsp_server.ask.trigger import AdaptiveDebounce, is_excluded, is_snippet, refusal
from lsp_server.settings import Settings, parse_settings


def test_the_adaptive_debounce_follows_the_latency_within_its_bounds():
    debounce = AdaptiveDebounce()
    assert debounce.delay_ms == 40
    for latency_ms, low, high in ((5000, 150, 150), (10, 40, 40), (200, 90, 100)):
        for _ in range(40):
            debounce.observe(latency_ms)
        assert low <= debounce.delay_ms <= high + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("print($1)", True),
        ("for ${1:x} in", True),
        ("f($0)", True),
        ("print", False),
        ("for ${name} in", True),
        ("$TM_FILENAME", True),
        ("// $CURRENT_YEAR", True),
        ("$UUID", True),
        ("$UUIDS", False),
        ("$this->tm", False),
    ],
)
def test_what_has_places_to_tab_through_is_a_snippet(text, expected):
    assert is_snippet(text) == expected


def test_a_shell_variable_is_no_snippet():
    assert not is_snippet("$HOME")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_to_an_excluded_file_is_excluded(tmp_path: Path):
    (tmp_path / ".env").write_text("KEY=1")
    link = tmp_path / "notes.txt"
    link.symlink_to(tmp_path / ".env")
    assert is_excluded(str(link), Settings())
    assert not is_excluded(str(tmp_path / "other.txt"), Settings())


def test_a_name_that_no_file_can_have_is_judged_as_it_is():
    assert not is_excluded("untitled\0", Settings())
    assert is_excluded("a\0/.env", Settings())


def test_who_asks_gets_an_answer_where_the_trigger_is_manual():
    settings, _ = parse_settings({"trigger": "manual"})
    assert refusal("/a.py", "python", settings, name="/a.py", explicit=True) is None
    assert refusal("/a.py", "python", settings, name="/a.py", explicit=False) is not None


@pytest.mark.parametrize(
    "name",
    [
        "zipfile://backup.zip::.env",
        "zipfile:file%3A%2F%2F%2Fa.zip::%2Eenv",
        "git:///?path=/work/.env",
        "git:///?path=/work/.env&ref=HEAD",
        'conflict:?{"path":"/work/.env"}',
        "conflict:?%7B%22path%22%3A%22/work/.env%22%7D",
        "file:///work/#1/.env",
        "file:///work/x#.env",
        "scratch://.env",
    ],
)
def test_a_file_is_excluded_wherever_its_uri_names_it(name: str):
    assert refusal("/", "python", Settings(), name=name, explicit=True) == "excluded file"


@pytest.mark.parametrize(
    "name", ["file:///work/a.py", "git:/work/a.py?ref=env", "untitled:Untitled-1", "c:\\a.py", ""]
)
def test_what_else_a_uri_says_excludes_nothing(name: str):
    assert refusal("/work/a.py", "python", Settings(), name=name, explicit=True) is None


def test_a_folder_that_is_called_like_a_scheme_may_be_excluded():
    settings = Settings(exclude=("git", "file"))
    for scheme in settings.exclude:
        name = f"{scheme}:/work/a.py"
        assert refusal("/work/a.py", "python", settings, name=name, explicit=True) is None
