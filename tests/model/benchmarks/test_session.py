"""The editing session: real text, typed as a person would."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from model.benchmarks import session
from model.benchmarks.session import Event, events
from model.evaluation.sources import SourceText, load_sources


@pytest.fixture
def sources(source: Path) -> list[SourceText]:
    text = source.read_text(encoding="utf-8")
    return [*load_sources([source]), SourceText("other.py", "python", "import os\n\n\n" + text)]


def test_the_same_seed_replays_the_same_session(sources: list[SourceText]) -> None:
    assert events(sources, 300, seed=3) == events(sources, 300, seed=3)
    assert events(sources, 300, seed=3) != events(sources, 300, seed=4)


def test_a_session_holds_every_kind_of_event(sources: list[SourceText]) -> None:
    kinds = {event.kind for event in events(sources, 3000, seed=0)}
    assert kinds == {
        "open", "type", "erase", "accept", "jump", "paste", "edit below", "switch",
    }  # fmt: skip


def test_each_event_changes_what_its_kind_says(sources: list[SourceText]) -> None:
    for before, now in pairwise(events(sources, 3000, seed=1)):
        if now.kind in ("open", "switch"):
            assert now.document != before.document or now.kind == "open"
            continue
        assert now.document == before.document
        if now.kind in ("type", "accept", "paste"):
            typed = now.text[before.cursor : now.cursor]
            if before.ahead and now.kind != "paste" and now.ahead:
                assert before.ahead == typed + now.ahead
            assert now.text == put(before, typed)
            assert typed
        elif now.kind == "erase":
            assert before.text == put(now, before.text[now.cursor : before.cursor])
        elif now.kind == "edit below":
            assert now.cursor == before.cursor
            assert now.text[: now.cursor] == before.text[: now.cursor]
            assert now.text != before.text


def put(event: Event, text: str) -> str:
    return event.text[: event.cursor] + text + event.text[event.cursor :]


def test_a_region_is_typed_as_the_file_has_it(
    sources: list[SourceText], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "EDIT_BELOW_SHARE", 0.0)
    played = events(sources[:1], 3000, seed=0)
    end = next(index for index, event in enumerate(played) if event.kind == "paste")
    assert played[end - 1].text == sources[0].text


def test_a_session_without_a_file_to_work_in_is_refused() -> None:
    with pytest.raises(ValueError, match="60 lines"):
        events([SourceText("short.py", "python", "x = 1\n")], 10, seed=0)
