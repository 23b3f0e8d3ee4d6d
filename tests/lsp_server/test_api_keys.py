"""A key reaches the engine it was stored for and nobody else."""

from __future__ import annotations

import pytest

from lsp_server.engine_link.api_keys import ENVIRONMENT, ApiKeys

STORED = {"apiKey": {"url": "https://api.inceptionlabs.ai/v1", "key": "sesame"}}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_the_key_is_taken_out_of_the_options_which_may_hold_settings() -> None:
    keys = ApiKeys()
    assert keys.taken_from({**STORED, "debounceMs": 5}) == {"debounceMs": 5}
    assert keys.taken_from(STORED) is None


@pytest.mark.parametrize("options", [None, {}, {"debounceMs": 5}, [], "x"])
def test_options_without_a_key_are_left_alone(options: object) -> None:
    assert ApiKeys().taken_from(options) == options


@pytest.mark.parametrize("bad", [None, "sesame", {}, {"url": 1, "key": "x"}, {"key": "sesame"}])
def test_a_key_of_no_engine_is_dropped(bad: object) -> None:
    keys = ApiKeys()
    assert keys.taken_from({"apiKey": bad}) is None
    assert keys.key_for("https://api.inceptionlabs.ai") == ""


def test_a_stored_key_is_for_its_own_server_only() -> None:
    keys = ApiKeys()
    keys.taken_from(STORED)
    assert keys.key_for("https://api.inceptionlabs.ai") == "sesame"
    assert keys.key_for("https://api.inceptionlabs.ai:443/v1/fim/completions") == "sesame"
    for other in (
        "http://api.inceptionlabs.ai/v1",
        "https://api.inceptionlabs.ai:8443/v1",
        "https://api.inceptionlabs.ai.example/v1",
        "https://localhost",
        "https://[",
        "",
    ):
        assert keys.key_for(other) == ""


def test_the_environments_key_serves_where_none_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "open\n")
    keys = ApiKeys()
    keys.taken_from(STORED)
    assert keys.key_for("http://localhost:8012") == "open"
    assert keys.key_for("https://api.inceptionlabs.ai") == "sesame"
