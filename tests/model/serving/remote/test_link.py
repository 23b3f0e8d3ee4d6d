"""Retries, keys and what is said of a failure."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import AsyncIterator

import pytest
from fake_remote import FakeRemote, Reply, fake_remote, json_reply

from model.api import CompletionError, EngineOverloadedError, EngineUnavailableError
from model.serving.remote.link import KeyRefusedError, Link, Retries

FINE = json_reply({"fine": True})
HASTY = Retries(attempts=3, first_s=0.001, last_s=0.002)


@contextlib.asynccontextmanager
async def link_to(fake: FakeRemote, key: str = "") -> AsyncIterator[Link]:
    link = Link(fake.url, key=key, retries=HASTY)
    try:
        yield link
    finally:
        await link.close()


async def ask(link: Link, for_s: float = 30) -> list[dict[str, object]]:
    until = time.monotonic() + for_s
    return [event async for event in link.events("/ask", {"q": 1}, until=until)]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_says_later_is_asked_again(status: int) -> None:
    async with fake_remote({"/ask": [Reply(status=status), FINE]}) as fake, link_to(fake) as link:
        assert await ask(link) == [{"fine": True}]
    assert len(fake.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 501])
async def test_what_would_not_change_is_asked_once(status: int) -> None:
    async with fake_remote({"/ask": [Reply(status=status), FINE]}) as fake, link_to(fake) as link:
        with pytest.raises(CompletionError, match=f"HTTP {status}"):
            await ask(link)
    assert len(fake.asked) == 1


async def test_it_gives_up_after_its_attempts() -> None:
    full = json_reply({"error": "no room"}, 503)
    async with fake_remote({"/ask": full}) as fake, link_to(fake) as link:
        with pytest.raises(EngineUnavailableError, match="HTTP 503: no room"):
            await ask(link)
    assert len(fake.asked) == HASTY.attempts


async def test_nobody_there_is_tried_again_and_then_said() -> None:
    async with fake_remote({}) as fake:
        pass
    async with link_to(fake) as link:
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            await ask(link)


async def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    broken = Reply(
        body='data: {"a": 1}\n\n', headers={"content-type": "text/event-stream"}, breaks=True
    )
    async with fake_remote({"/ask": [broken, FINE]}) as fake, link_to(fake) as link:
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            await ask(link)
    assert len(fake.asked) == 1


async def test_no_retry_begins_after_the_deadline() -> None:
    async with fake_remote({"/ask": Reply(status=503)}) as fake, link_to(fake) as link:
        with pytest.raises(EngineUnavailableError, match="503"):
            await ask(link, for_s=0)
    assert len(fake.asked) == 1


@pytest.mark.parametrize("is_date", [False, True])
async def test_retry_after_holds_for_later_questions_too(is_date: bool) -> None:
    header = email.utils.formatdate(time.time() + 3600, usegmt=True) if is_date else "3600"
    limited = json_reply({"error": {"message": "slow down"}}, 429, retry_after=header)
    async with fake_remote({"/ask": [limited, FINE]}) as fake, link_to(fake) as link:
        with pytest.raises(EngineOverloadedError, match="slow down"):
            await ask(link, for_s=5)
        with pytest.raises(EngineOverloadedError, match="wants no request"):
            await ask(link, for_s=5)
    assert len(fake.asked) == 1


async def test_a_short_retry_after_is_waited_for() -> None:
    limited = json_reply({}, 429, retry_after="0.3")
    async with fake_remote({"/ask": [limited, FINE]}) as fake, link_to(fake) as link:
        started = time.monotonic()
        assert await ask(link) == [{"fine": True}]
        assert time.monotonic() - started >= 0.3


def test_delays_double_and_are_spread() -> None:
    retries = Retries(first_s=1, last_s=4)
    for attempt, whole in enumerate((1, 2, 4, 4)):
        delays = [retries.delay_s(attempt) for _ in range(200)]
        assert all(whole / 2 <= delay <= whole for delay in delays)
        assert max(delays) - min(delays) > whole / 8  # the chance that all 200 are closer: 1e-24


async def test_the_key_is_not_sent_where_a_redirect_leads() -> None:
    async with fake_remote({"/ask": FINE}) as other:
        moved = Reply(status=307, headers={"location": f"{other.url}/ask"})
        async with fake_remote({"/ask": moved}) as fake, link_to(fake, "sesame") as link:
            with pytest.raises(CompletionError, match="307"):
                await ask(link)
    assert not other.asked


async def test_no_message_quotes_the_key() -> None:
    quoting = json_reply({"error": {"message": "Received API Key = sesame"}}, 401)
    async with fake_remote({"/ask": quoting}) as fake, link_to(fake, "sesame") as link:
        with pytest.raises(KeyRefusedError) as caught:
            await ask(link)
    assert "Received API Key = …" in str(caught.value)
    with pytest.raises(CompletionError) as caught:
        Link("http://127.0.0.1:1", key="ses\name\u20ac")
    assert "ses" not in str(caught.value).replace("127.0.0.1", "")
