"""What an infill becomes for engines that fill one hole at a time, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import pytest
from fake_remote import FakeRemote, Reply, fake_remote, json_reply, stream_reply
from shapes import (
    LLAMA_CPP_NO_KEY,
    LLAMA_CPP_TOO_LONG,
    llama_cpp_end,
    llama_cpp_token,
    mercury_answer,
    openai_end,
    openai_token,
    openai_usage,
)

from model.api import (
    EngineAddress,
    EngineOverloadedError,
    EngineUnavailableError,
    InfillRequest,
    InvalidRequestError,
    SupersededError,
)
from model.serving.remote.engine import RemoteEngine
from model.serving.remote.link import Link, Retries
from model.serving.remote.llama_cpp import LlamaCppDialect
from model.serving.remote.mercury import MercuryDialect
from model.serving.remote.openai import OpenAIDialect

HASTY = Retries(first_s=0.001, last_s=0.002)
DIALECTS = {"llama.cpp": LlamaCppDialect, "mercury": MercuryDialect, "openai": OpenAIDialect}
INFILL = "/infill"
COMPLETIONS = "/v1/completions"
FIM = "/v1/fim/completions"

ANSWERED = stream_reply(
    llama_cpp_token("re", 0.5, 1), llama_cpp_token("turn", 0.8, 2), llama_cpp_end(3), done=False
)


@contextlib.asynccontextmanager
async def engine_of(fake: FakeRemote, kind: str, **address: str) -> AsyncIterator[RemoteEngine]:
    dialect = DIALECTS[kind](EngineAddress(url=fake.url, kind=kind, **address))
    engine = RemoteEngine(Link(fake.url, key="sesame", retries=HASTY), dialect)
    try:
        yield engine
    finally:
        await engine.close()


async def test_llama_cpp_is_asked_with_prefix_and_suffix_and_its_tokens_are_read() -> None:
    async with fake_remote({INFILL: ANSWERED}) as fake, engine_of(fake, "llama.cpp") as engine:
        result = await engine.complete(InfillRequest(prefix="ab", suffix="cd", max_new_tokens=9))
    (asked,) = fake.asked
    assert asked.headers["authorization"] == "Bearer sesame"
    assert asked.body["input_prefix"] == "ab"
    assert asked.body["input_suffix"] == "cd"
    assert asked.body["n_predict"] == 9
    assert asked.body["temperature"] == 0
    (candidate,) = result.candidates
    assert candidate.text == "return"
    assert candidate.finished
    assert candidate.probabilities == pytest.approx((0.5, 0.8))
    assert candidate.confidence == pytest.approx(0.4)
    assert candidate.token_ends == (2, 6)
    assert (result.tokens, result.encoded_tokens, result.forwards) == (3, 2, 0)


async def test_mercury_is_asked_in_its_own_words_and_tells_no_confidence() -> None:
    routes = {FIM: json_reply(mercury_answer("return x"))}
    async with fake_remote(routes) as fake, engine_of(fake, "mercury") as engine:
        result = await engine.complete(InfillRequest(prefix="ab", suffix="cd"))
    assert fake.asked[0].body == {
        "model": "mercury-edit-2",
        "prompt": "ab",
        "suffix": "cd",
        "max_tokens": 64,
        "temperature": 0.0,
        "top_p": 1.0,
    }
    (candidate,) = result.candidates
    assert candidate.text == "return x"
    assert math.isnan(candidate.confidence)
    assert candidate.probabilities == candidate.token_ends == ()
    assert (result.tokens, result.encoded_tokens) == (4, 20)


async def test_openai_is_asked_for_a_stream_with_probabilities_and_usage() -> None:
    events = (
        openai_token("re", 0.5),
        openai_token("turn", 0.5),
        openai_end(),
        openai_usage(9, 3, 4),
    )
    async with (
        fake_remote({COMPLETIONS: stream_reply(*events)}) as fake,
        engine_of(fake, "openai", model="coder") as engine,
    ):
        result = await engine.complete(InfillRequest(prefix="ab", suffix="cd"))
    body = fake.asked[0].body
    assert (body["model"], body["prompt"], body["suffix"]) == ("coder", "ab", "cd")
    assert body["stream"] is True
    (candidate,) = result.candidates
    assert (candidate.text, candidate.confidence) == ("return", pytest.approx(0.25))
    assert candidate.token_ends == (2, 6)
    assert (result.tokens, result.encoded_tokens) == (3, 5)


async def test_a_template_makes_one_prompt_and_its_markers_end_the_answer() -> None:
    template = "<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    async with (
        fake_remote({COMPLETIONS: stream_reply(openai_token("x", 0.5), openai_end())}) as fake,
        engine_of(fake, "openai", model="coder", fim_template=template) as engine,
    ):
        await engine.complete(InfillRequest(prefix="a{suffix}", suffix="{prefix}b"))
        with pytest.raises(InvalidRequestError, match="fim_middle"):
            await engine.complete(InfillRequest(prefix="a = '<|fim_middle|>'"))
    (asked,) = fake.asked
    assert asked.body["prompt"] == ("<|fim_prefix|>a{suffix}<|fim_suffix|>{prefix}b<|fim_middle|>")
    assert "suffix" not in asked.body
    assert asked.body["stop"] == ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


async def test_an_optional_field_that_a_server_refuses_is_left_out_from_then_on() -> None:
    complaint = {"object": "error", "message": "logprobs: extra fields not permitted", "code": 400}
    fine = stream_reply(openai_token("x", 0.5), openai_end())
    async with (
        fake_remote({COMPLETIONS: [json_reply(complaint, 400), fine]}) as fake,
        engine_of(fake, "openai", model="m") as engine,
    ):
        for _ in range(2):
            await engine.complete(InfillRequest(prefix="ab"))
    assert ["logprobs" in asked.body for asked in fake.asked] == [True, False, False]


async def test_a_server_that_refuses_a_suffix_is_quoted_and_not_asked_again() -> None:
    complaint = {"error": {"message": "suffix is not currently supported", "code": 400}}
    async with (
        fake_remote({COMPLETIONS: json_reply(complaint, 400)}) as fake,
        engine_of(fake, "openai", model="m") as engine,
    ):
        with pytest.raises(InvalidRequestError, match="suffix is not currently supported"):
            await engine.complete(InfillRequest(prefix="ab"))
    assert len(fake.asked) == 1


async def test_typed_text_ends_the_prompt_and_begins_the_answer() -> None:
    async with fake_remote({INFILL: ANSWERED}) as fake, engine_of(fake, "llama.cpp") as engine:
        result = await engine.complete(InfillRequest(prefix="ab", typed="if é: "))
    assert fake.asked[0].body["input_prefix"] == "abif é: "
    (candidate,) = result.candidates
    assert candidate.text == "if é: return"
    assert candidate.token_ends == (8, 12)


async def test_several_holes_are_filled_in_turn_each_in_sight_of_the_ones_before() -> None:
    replies = [
        stream_reply(llama_cpp_token(text, 0.5, 1), llama_cpp_end(2), done=False) for text in "xyz"
    ]
    async with fake_remote({INFILL: replies}) as fake, engine_of(fake, "llama.cpp") as engine:
        request = InfillRequest(prefix="A", between=("B", "C"), suffix="D", candidates=3)
        result = await engine.complete(request)
    prompts = [(asked.body["input_prefix"], asked.body["input_suffix"]) for asked in fake.asked]
    assert prompts == [("A", "BCD"), ("AxB", "CD"), ("AxByC", "D")]
    (candidate,) = result.candidates
    assert candidate.texts == ("x", "y", "z")
    assert candidate.confidence == pytest.approx(0.125)
    assert candidate.token_ends == ()


async def test_further_candidates_are_drawn_and_equal_ones_merged() -> None:
    replies = [
        stream_reply(llama_cpp_token(text, 0.5, 1), llama_cpp_end(2), done=False) for text in "xyx"
    ]
    async with fake_remote({INFILL: replies}) as fake, engine_of(fake, "llama.cpp") as engine:
        result = await engine.complete(
            InfillRequest(prefix="A", candidates=3, temperature=0.7, top_p=0.9, seed=5)
        )
    drawn = {
        (asked.body["temperature"], asked.body["top_p"], asked.body["seed"]) for asked in fake.asked
    }
    assert drawn == {(0.0, 1.0, 5), (0.7, 0.9, 6), (0.7, 0.9, 7)}
    assert sorted(candidate.text for candidate in result.candidates) == ["x", "y"]


async def test_a_deadline_keeps_what_has_come() -> None:
    reply = stream_reply(llama_cpp_token("re", 0.5, 1), done=False, ends=False)
    async with fake_remote({INFILL: reply}) as fake, engine_of(fake, "llama.cpp") as engine:
        result = await engine.complete(InfillRequest(prefix="ab", deadline_ms=3000))
        await asyncio.wait_for(fake.hung_up.wait(), 10)
    (candidate,) = result.candidates
    assert (candidate.text, candidate.finished) == ("re", False)


async def test_a_deadline_before_the_first_token_is_an_error_that_names_the_setting() -> None:
    reply = stream_reply(done=False, ends=False)
    async with fake_remote({INFILL: reply}) as fake, engine_of(fake, "llama.cpp") as engine:
        with pytest.raises(EngineOverloadedError, match="deadlineMs"):
            await engine.complete(InfillRequest(prefix="ab", deadline_ms=50))


async def test_cancelling_closes_the_connection() -> None:
    reply = stream_reply(llama_cpp_token("re", 0.5, 1), done=False, ends=False)
    async with fake_remote({INFILL: reply}) as fake, engine_of(fake, "llama.cpp") as engine:
        completing = asyncio.create_task(engine.complete(InfillRequest(prefix="ab")))
        while not fake.asked:
            await asyncio.sleep(0.01)
        completing.cancel()
        await asyncio.wait_for(fake.hung_up.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await completing


async def test_a_newer_request_of_a_document_replaces_the_older_one() -> None:
    hanging = stream_reply(llama_cpp_token("re", 0.5, 1), done=False, ends=False)
    routes = {INFILL: [hanging, ANSWERED]}
    async with fake_remote(routes) as fake, engine_of(fake, "llama.cpp") as engine:
        older = asyncio.create_task(engine.complete(InfillRequest(prefix="ab", document="d")))
        while not fake.asked:
            await asyncio.sleep(0.01)
        newer = await engine.complete(InfillRequest(prefix="abc", document="d"))
        with pytest.raises(SupersededError):
            await older
        await asyncio.wait_for(fake.hung_up.wait(), 10)
    assert newer.candidates[0].text == "return"


async def test_characters_whose_tokens_are_not_all_told_have_no_confidence() -> None:
    events = (llama_cpp_token("é", 0.9, 3), llama_cpp_end(4))  # three tokens, one of them told
    async with (
        fake_remote({INFILL: stream_reply(*events, done=False)}) as fake,
        engine_of(fake, "llama.cpp") as engine,
    ):
        (candidate,) = (await engine.complete(InfillRequest(prefix="ab"))).candidates
    assert candidate.text == "é"
    assert math.isnan(candidate.confidence)
    assert candidate.token_ends == ()


async def test_windows_line_ends_become_line_feeds() -> None:
    routes = {FIM: json_reply(mercury_answer("a\r\nb\rc"))}
    async with fake_remote(routes) as fake, engine_of(fake, "mercury") as engine:
        result = await engine.complete(InfillRequest(prefix="ab"))
    assert result.candidates[0].text == "a\nb\nc"


async def test_an_oracle_length_is_refused() -> None:
    async with fake_remote({}) as fake, engine_of(fake, "llama.cpp") as engine:
        with pytest.raises(InvalidRequestError, match="length_of"):
            await engine.complete(InfillRequest(prefix="ab", length_of="abc"))
    assert not fake.asked


async def test_a_context_that_is_too_long_is_refused_with_the_engines_words() -> None:
    routes = {INFILL: json_reply(LLAMA_CPP_TOO_LONG, 400)}
    async with fake_remote(routes) as fake, engine_of(fake, "llama.cpp") as engine:
        with pytest.raises(InvalidRequestError, match="exceeds the available context size"):
            await engine.complete(InfillRequest(prefix="ab"))


@pytest.mark.parametrize(
    "reply",
    [
        json_reply({"text": "an answer of some other kind"}),
        json_reply({"choices": [{"text": "x", "logprobs": {"tokens": ["a"]}}]}),
        Reply(body="<html>", headers={"content-type": "text/html"}),
        json_reply([1]),
        stream_reply({"error": {"message": "out of memory"}}),
    ],
)
@pytest.mark.parametrize("kind", DIALECTS)
async def test_an_answer_of_another_shape_is_an_error_and_no_text(reply: Reply, kind: str) -> None:
    routes = {INFILL: reply, COMPLETIONS: reply, FIM: reply}
    async with fake_remote(routes) as fake, engine_of(fake, kind, model="m") as engine:
        with pytest.raises(EngineUnavailableError, match=r"127\.0\.0\.1"):
            await engine.complete(InfillRequest(prefix="ab"))


async def test_a_refused_key_ends_the_lease_with_what_to_do() -> None:
    routes = {INFILL: json_reply(LLAMA_CPP_NO_KEY, 401)}
    async with fake_remote(routes) as fake, engine_of(fake, "llama.cpp") as engine:
        lease = asyncio.create_task(engine.hold_lease())
        with pytest.raises(InvalidRequestError, match="MEZZOTINT_API_KEY"):
            await engine.complete(InfillRequest(prefix="ab"))
        with pytest.raises(InvalidRequestError, match="Invalid API Key"):
            await asyncio.wait_for(lease, 10)
    assert len(fake.asked) == 1


async def test_a_request_that_is_refused_leaves_the_lease_alone() -> None:
    routes = {INFILL: json_reply(LLAMA_CPP_TOO_LONG, 400)}
    async with fake_remote(routes) as fake, engine_of(fake, "llama.cpp") as engine:
        lease = asyncio.create_task(engine.hold_lease())
        with pytest.raises(InvalidRequestError):
            await engine.complete(InfillRequest(prefix="ab"))
        await asyncio.sleep(0)
        assert not lease.done()
        lease.cancel()
