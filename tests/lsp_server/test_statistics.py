"""What became of the suggestions, in figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsp_server.window.statistics import SuggestionLog


@pytest.fixture
def log(tmp_path: Path) -> SuggestionLog:
    log = SuggestionLog(tmp_path / "state")
    for name in ("a", "b", "c"):
        log.offer(name, language="go", num_characters=10, confidence=0.5)
    return log


def test_nothing_is_written_of_what_nobody_saw(log: SuggestionLog):
    assert not log.file.exists()
    assert (log.summary()["shown"], log.summary()["acceptanceRate"]) == (0, None)


def test_shown_and_accepted_make_a_rate(log: SuggestionLog):
    for name in ("a", "b", "b"):
        log.shown(name)
    log.accepted("a")
    log.accepted("a")
    log.rejected("b")
    summary = log.summary()
    assert (summary["shown"], summary["accepted"], summary["rejected"]) == (2, 1, 1)
    assert (summary["acceptanceRate"], summary["charactersAccepted"]) == (0.5, 10)
    assert summary["languages"] == {"go": {"shown": 2, "accepted": 1, "charactersAccepted": 10}}
    assert summary["since"] is not None


def test_what_was_taken_in_part_is_not_rejected_by_writing_on(log: SuggestionLog):
    log.shown("a")
    log.partly_accepted("a", 3)
    log.rejected("a")
    summary = log.summary()
    assert (summary["partiallyAccepted"], summary["rejected"]) == (1, 0)


def test_a_suggestion_taken_word_by_word_counts_once_and_each_character_once(log: SuggestionLog):
    log.shown("a")
    log.partly_accepted("a", 3)
    log.partly_accepted("a", 7)
    log.partly_accepted("a", 5)
    log.accepted("a")
    summary = log.summary()
    assert (summary["partiallyAccepted"], summary["accepted"]) == (1, 1)
    assert (summary["charactersAccepted"], summary["acceptanceRate"]) == (10, 1.0)


def test_no_more_is_accepted_than_there_was(log: SuggestionLog):
    log.partly_accepted("a", 999)
    assert log.summary()["charactersAccepted"] == 10


def test_a_client_that_does_not_tell_what_it_shows_gets_no_rate(log: SuggestionLog):
    log.accepted("a")
    assert (log.summary()["accepted"], log.summary()["acceptanceRate"]) == (1, None)


def test_what_was_never_offered_does_not_count(log: SuggestionLog):
    log.shown("z")
    log.accepted("z")
    assert log.summary()["shown"] == 0


def test_a_reset_forgets_all(log: SuggestionLog):
    log.shown("a")
    log.reset()
    assert log.summary()["shown"] == 0
    assert not log.file.exists()


def test_a_line_that_another_window_has_not_finished_is_left_out(log: SuggestionLog):
    log.shown("a")
    with log.file.open("a") as file:
        file.write('{"event": "sho')
    assert log.summary()["shown"] == 1


def test_a_file_that_grows_too_large_makes_room(
    log: SuggestionLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lsp_server.window.statistics._MAX_BYTES", 10)
    for name in ("a", "b", "c"):
        log.shown(name)
    assert log.summary()["shown"] == 2  # the oldest is gone
    assert len(list(log.file.parent.iterdir())) == 2


def test_no_event_holds_more_than_it_says(log: SuggestionLog):
    log.shown("a")
    (event,) = map(json.loads, log.file.read_text().splitlines())
    assert set(event) == {"time", "event", "language", "characters", "confidence", "again"}


def test_a_folder_that_cannot_be_written_costs_only_the_statistics(tmp_path: Path):
    (tmp_path / "file").write_text("")
    log = SuggestionLog(tmp_path / "file")
    log.offer("a", language="go", num_characters=1, confidence=1.0)
    log.shown("a")
    assert log.summary()["shown"] == 0


def offered_again(log: SuggestionLog, num_characters: int) -> None:
    """What is left of "a", once more."""
    log.offer("a", language="go", num_characters=num_characters, confidence=0.5)
    log.shown("a")


def test_a_suggestion_that_is_typed_into_is_shown_once(log: SuggestionLog):
    log.shown("a")
    for left in (9, 8, 7):
        offered_again(log, left)
    log.accepted("a")
    summary = log.summary()
    assert (summary["shown"], summary["accepted"], summary["acceptanceRate"]) == (1, 1, 1.0)
    assert summary["charactersAccepted"] == 7  # the others were typed


@pytest.mark.parametrize("fate", ["accepted", "rejected", "unknown"])
@pytest.mark.parametrize("typed", [0, 1])
def test_what_is_left_of_a_suggestion_is_still_the_same_one(
    log: SuggestionLog, fate: str, typed: int
):
    log.shown("a")
    log.partly_accepted("a", 4)
    offered_again(log, 6)
    log.partly_accepted("a", 2)
    offered_again(log, 4 - typed)
    if fate != "unknown":
        getattr(log, fate)("a")
    summary = log.summary()
    assert (summary["shown"], summary["partiallyAccepted"], summary["rejected"]) == (1, 1, 0)
    assert summary["accepted"] == (fate == "accepted")
    assert summary["charactersAccepted"] == (10 - typed if fate == "accepted" else 6)
    assert summary["acceptanceRate"] == 1.0


def test_a_suggestion_that_comes_back_after_it_was_settled_is_judged_anew(log: SuggestionLog):
    log.shown("a")
    log.rejected("a")
    offered_again(log, 10)
    log.accepted("a")
    log.partly_accepted("a", 3)  # too late
    summary = log.summary()
    assert (summary["shown"], summary["accepted"], summary["rejected"]) == (2, 1, 1)
    assert (summary["partiallyAccepted"], summary["charactersAccepted"]) == (0, 10)


@pytest.mark.parametrize("length", [0, -5])
def test_to_accept_nothing_of_it_is_no_acceptance(log: SuggestionLog, length: int):
    log.shown("a")
    log.partly_accepted("a", length)
    log.rejected("a")
    assert (log.summary()["partiallyAccepted"], log.summary()["rejected"]) == (0, 1)


def test_a_suggestion_that_goes_on_is_remembered_longer_than_its_elders(
    log: SuggestionLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lsp_server.window.statistics._MAX_REMEMBERED", 3)
    log.shown("a")
    offered_again(log, 9)
    for name in ("d", "e"):
        log.offer(name, language="go", num_characters=1, confidence=0.5)
    log.accepted("a")
    assert log.summary()["accepted"] == 1
