from __future__ import annotations

import json
from typing import Any

import pytest

from model.serving.v1.errors import ApiError
from model.serving.v1.fields import NEUTRAL, Defaults, Fields, Options, take_options

DEFAULTS = Defaults(max_tokens=16, temperature=0.3, top_p=0.8)


def read(**fields: Any) -> Options:
    taken = Fields.of_body(json.dumps(fields).encode())
    options = take_options(taken, DEFAULTS)
    taken.finish()
    return options


def refusal(**fields: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
    return caught.value.envelope["error"]


@pytest.mark.parametrize("name", sorted(NEUTRAL.keys() - {"max_tokens"}))
def test_a_field_that_the_engine_has_nothing_for_is_refused_by_its_name(name: str) -> None:
    error = refusal(**{name: "something"})
    assert error["param"] == name
    assert name in error["message"]
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_field_that_asks_for_nothing_may_be_there(name: str) -> None:
    for value in (None, *NEUTRAL[name]):
        read(**{name: value})


def test_a_field_that_nobody_knows_is_refused_even_without_a_value() -> None:
    assert refusal(tempreature=None)["param"] == "tempreature"


def test_false_is_no_number() -> None:
    assert refusal(presence_penalty=False)["param"] == "presence_penalty"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 4097),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("n", 17),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 10**400),
        ("seed", "x"),
        ("stop", ""),
        ("stop", ["a", 1]),
        ("stop", ["1", "2", "3", "4", "5"]),
        ("stop", {}),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),  # without a stream
        ("diffusing", True),  # without a stream
        ("user", 7),
        ("model", []),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field: str, value: object) -> None:
    assert field in refusal(**{field: value})["message"]


def test_stream_options_are_read_as_strictly() -> None:
    assert read(stream=True, stream_options={"include_usage": True}).include_usage
    for name, value in (("include_usage", "yes"), ("include_obfuscation", True), ("other", 1)):
        error = refusal(stream=True, stream_options={name: value})
        assert error["param"] == f"stream_options.{name}"


def test_what_is_left_out_or_null_is_the_routes_default() -> None:
    for fields in ({}, dict.fromkeys(("max_tokens", "temperature", "top_p", "n", "stop", "user"))):
        options = read(**fields)
        assert (options.max_tokens, options.temperature, options.top_p) == (16, 0.3, 0.8)
        assert (options.n, options.stop, options.user) == (1, (), "")


def test_without_a_seed_asking_again_is_asking_for_something_else() -> None:
    assert read().seed != read().seed
    assert read(seed=7).seed == 7


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError):
        Fields.of_body(body)
