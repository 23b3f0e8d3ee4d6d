"""One status of everything."""

from __future__ import annotations

from typing import Any

import pytest

from lsp_server.ask.completion import Reason
from lsp_server.engine_link.engine_process import EngineState
from lsp_server.window.status import StatusBoard
from model.api import InfillResult

RESULT = InfillResult(candidates=(), forwards=3, tokens=5, encoded_tokens=1, ms=12.34)


@pytest.fixture
def sent() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def board(sent: list[dict[str, Any]]) -> StatusBoard:
    return StatusBoard(sent.append)


def test_an_answer_tells_its_price(board: StatusBoard, sent: list[dict[str, Any]]):
    board.answered(None, RESULT)
    assert sent[-1] == {
        "state": "ready",
        "kind": "normal",
        "busy": False,
        "message": "ready",
        "reason": None,
        "ms": 12.3,
        "forwards": 3,
    }


def test_no_status_is_sent_twice_in_a_row(board: StatusBoard, sent: list[dict[str, Any]]):
    board.answered(None)
    board.answered(None)
    assert len(sent) == 1


def test_a_request_under_way_is_busy_until_the_last_one_ends(
    board: StatusBoard, sent: list[dict[str, Any]]
):
    with board.working():
        with board.working():
            assert (sent[-1]["state"], sent[-1]["busy"]) == ("busy", True)
        assert sent[-1]["busy"] is True
    assert (sent[-1]["state"], sent[-1]["busy"]) == ("ready", False)


@pytest.mark.parametrize(
    ("reason_kind", "engine_kind", "state", "message"),
    [
        ("normal", "ready", "ready", "why"),
        ("warning", "starting", "loading", "engine"),
        ("inactive", "loading", "inactive", "why"),
        ("error", "ready", "error", "why"),
        ("normal", "failed", "error", "engine"),
        ("normal", "stopped", "ready", "why"),
    ],
)
def test_what_matters_most_is_said(
    board: StatusBoard, sent: list[dict[str, Any]], reason_kind, engine_kind, state, message
):
    board.engine_is(EngineState(kind=engine_kind, message="engine"))
    board.answered(Reason(kind=reason_kind, message="why"))
    assert (sent[-1]["state"], sent[-1]["message"]) == (state, message)
    assert sent[-1]["reason"] == "why"


def test_a_warning_about_the_engine_goes_when_it_is_ready(
    board: StatusBoard, sent: list[dict[str, Any]]
):
    board.answered(Reason(kind="warning", message="no engine"))
    assert sent[-1]["state"] == "warning"
    board.engine_is(EngineState(kind="ready", message=""))
    assert sent[-1]["state"] == "ready"
