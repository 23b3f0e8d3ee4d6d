from __future__ import annotations

import dataclasses
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import api
from model.api import Candidate, CompletionError, Frame, InfillRequest, InfillResult, Policy
from model.serving.protocol import (
    InfillCall,
    ProtocolError,
    decode,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
)

texts = st.text(st.characters(), max_size=20)  # lone surrogates and all
counts = st.integers(0, 2**40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
oracles = st.builds(
    InfillRequest,
    prefix=texts,
    length_of=st.text(min_size=1),
    policy=st.none() | st.sampled_from(get_args(Policy)),
    entropy_bound=st.floats(0, 1e3),
    factor=st.floats(0, 100),
    top_p=st.floats(0.01, 1),
)
requests = oracles | st.builds(
    InfillRequest,
    prefix=texts,
    suffix=texts,
    prefix_tokens=st.integers(16, 4096),
    suffix_tokens=st.integers(0, 4096),
    max_lines=st.none() | st.integers(1, 99),
    min_indent=st.none() | st.integers(0, 99),
    draft=texts,
    between=st.lists(texts).map(tuple),
    typed=texts,
    language=texts,
    document=texts,
    client=texts,
    priority=st.sampled_from(["auto", "manual"]),
    max_new_tokens=st.integers(1, 4096),
    candidates=st.integers(1, 16),
    steps=st.none() | st.integers(1, 4096),
    threshold=st.floats(0.5, 1),
    remask=st.none() | st.floats(0, 0.5),
    temperature=st.floats(0, 10),
    seed=st.integers(),
    deadline_ms=st.none() | st.floats(0, 3.6e6),
)
candidates = st.builds(
    Candidate,
    texts=st.lists(texts, min_size=1).map(tuple),
    confidence=numbers,
    finished=st.booleans(),
    probabilities=st.lists(numbers).map(tuple),
    score=st.none() | numbers,
)
results = st.builds(
    InfillResult,
    candidates=st.lists(candidates).map(tuple),
    forwards=counts,
    tokens=counts,
    encoded_tokens=counts,
    ms=numbers,
)
frames = st.builds(Frame, step=counts, slots=st.lists(st.none() | texts).map(tuple))
ERRORS = [
    api.InvalidRequestError,
    api.CheckpointError,
    api.EngineUnavailableError,
    api.EngineOverloadedError,
    api.SupersededError,
    api.CompletionError,
]


@given(st.builds(InfillCall, request=requests, frames=st.booleans()))
def test_a_call_survives_the_wire(call: InfillCall) -> None:
    assert decode_call(encode_call(call)) == call


@given(results | frames)
def test_a_reply_survives_the_wire_in_one_line(reply: InfillResult | Frame) -> None:
    line = encode_reply(reply)
    assert decode_reply(line) == reply
    assert line.count(b"\n") == 1


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_keeps_its_class_and_message(cls: type[CompletionError]) -> None:
    error = decode_reply(encode_reply(cls("no\nluck")))
    assert type(error) is cls
    assert str(error) == "no\nluck"


def test_every_error_of_the_api_has_a_kind_of_its_own() -> None:
    assert set(ERRORS) == {CompletionError, *CompletionError.__subclasses__()}


def test_an_error_of_no_kind_travels_as_its_base() -> None:
    class OutOfMemoryError(api.EngineOverloadedError):
        pass

    assert type(decode_reply(encode_reply(OutOfMemoryError("")))) is api.EngineOverloadedError


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": 99}, "protocol 99"),
        ({"request": None}, "body.request must be an object"),
        ({"frames": 1}, "body.frames must be of type bool"),
        ({"colour": "red"}, "body has no field 'colour'"),
        ({"request": {}}, "body.request lacks the field 'prefix'"),
        ({"request": {"prefix": 7}}, "body.request.prefix must be of type str"),
        ({"request": {"prefix": "", "candidates": True}}, "candidates must be of type int"),
        ({"request": {"prefix": "", "candidates": 1.5}}, "candidates must be of type int"),
        ({"request": {"prefix": "", "between": "x"}}, "between must be an array"),
        ({"request": {"prefix": "", "between": ["", 1]}}, r"between\[1\] must be of type str"),
        (
            {"request": {"prefix": "", "priority": "now"}},
            "priority must be one of 'auto', 'manual'",
        ),
        ({"request": {"prefix": "", "priority": []}}, "priority must be one of"),
        ({"request": {"prefix": "", "deadline_ms": 10**400}}, "deadline_ms is too large"),
        ({"request": {"prefix": "", "steps": "8"}}, "steps must be of type int"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], sentence: str) -> None:
    body = {"protocol": 7, "request": {"prefix": "x"}, "frames": False} | change
    with pytest.raises(ProtocolError, match=sentence):
        decode_call(json.dumps(body).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"[" * 10**5, b"1" * 5000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_call(body)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_number_out_of_range_is_an_invalid_request(value: float) -> None:
    body = {"protocol": 7, "request": {"prefix": "", "threshold": value}}
    with pytest.raises(api.InvalidRequestError, match="threshold"):
        decode_call(json.dumps(body).encode())


def test_a_malformed_body_is_not_quoted_in_the_error() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_call(b'{"request": {"prefix": "secret"')
    assert "secret" not in str(caught.value)


def test_an_int_where_a_float_belongs_becomes_one() -> None:
    fields = {"texts": ["a"], "confidence": 1}
    candidate = decode(Candidate, fields, "candidate")
    assert isinstance(candidate.confidence, float)
    assert dataclasses.asdict(candidate)["finished"] is True


@pytest.mark.parametrize("line", ["{}", '{"error": {}}', '{"error": "x"}', '{"result": {}}'])
def test_a_reply_of_no_known_shape_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(line)
