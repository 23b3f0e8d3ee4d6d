"""The fields of an OpenAI-shaped request: strictly read, and none of them ignored.

A route takes the fields it knows out of the body; `Fields.finish` then refuses what is left, unless
its value asks for nothing (`null`, or one of `NEUTRAL`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from model.serving.protocol import ProtocolError, decode_object
from model.serving.v1.errors import ApiError

MAX_TOKENS = 4096
MAX_CHOICES = 16
MAX_STOPS = 4
MIN_TOP_P = 0.01

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's and Mercury's APIs that the engine has nothing for, and those of their values,
besides null, with which an answer is what it is without them."""

_KINDS: dict[type, str] = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}

T = TypeVar("T")


class Fields:
    """The fields of one JSON object that nobody has taken yet."""

    def __init__(self, fields: Mapping[str, Any], where: str = "") -> None:
        self._left = dict(fields)
        self._where = where

    @classmethod
    def of_body(cls, body: bytes) -> Fields:
        """Read a request's body. Raises `ApiError`."""
        try:
            return cls(decode_object(body))
        except ProtocolError as error:
            raise ApiError(str(error)) from None

    def name(self, field: str) -> str:
        """How errors call `field`."""
        return self._where + field

    def take(self, name: str, kind: type[T], default: T) -> T:
        """The field, or `default` where it is missing or null.

        Raises `ApiError` for another type.
        """
        value = self._left.pop(name, None)
        return default if value is None else checked(value, kind, self.name(name))

    def take_number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in low..high. Raises `ApiError`."""
        value = self.take(name, float, default)
        return self._in_range(name, value, low, high)

    def take_count(self, name: str, default: int, high: int) -> int:
        """An integer in 1..high. Raises `ApiError`."""
        value = self.take(name, int, default)
        self._in_range(name, value, 1, high)
        return value

    def _in_range(self, name: str, value: float, low: float, high: float) -> float:
        if not low <= value <= high:
            full = self.name(name)
            raise ApiError(f"{full} is {value}; it must lie in {low}..{high}", param=full)
        return value

    def has(self, name: str) -> bool:
        """Whether the field is there, not null, and nobody has taken it."""
        return self._left.get(name) is not None

    def take_raw(self, name: str) -> Any:
        """The field as it is; None where it is missing or null."""
        return self._left.pop(name, None)

    def require(self, name: str) -> Any:
        """The field as it is. Raises `ApiError` where it is missing or null."""
        value = self._left.pop(name, None)
        if value is None:
            full = self.name(name)
            raise ApiError(f"{full} is missing", param=full)
        return value

    def finish(self, neutral: Mapping[str, tuple[object, ...]] = NEUTRAL) -> None:
        """Raise `ApiError` for the first field that asks for something and was not taken."""
        for field, value in self._left.items():
            full = self.name(field)
            if field not in neutral:
                raise ApiError(f"there is no field {full}; leave it out", param=full)
            if value is None or any(_same(value, nothing) for nothing in neutral[field]):
                continue
            allowed = " or ".join([f"send {json.dumps(nothing)}" for nothing in neutral[field]])
            hint = f", or {allowed}" if allowed else ""
            raise ApiError(
                f"{full} is not supported by this engine; leave it out{hint}",
                param=full,
                code="unsupported_parameter",
            )


def _same(value: object, nothing: object) -> bool:
    # Python holds false for equal to 0.
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def checked(value: Any, kind: type[T], name: str) -> T:
    """`value`, which must be of `kind`. Raises `ApiError`."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return cast("T", float(value))
        except OverflowError:
            raise ApiError(f"{name} is too large a number", param=name) from None
    # JSON's true is an int to Python.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ApiError(f"{name} must be {_KINDS[kind]}", param=name)
    return value


def strings(value: object, name: str) -> tuple[str, ...]:
    """One string or an array of them. Raises `ApiError`."""
    if isinstance(value, str):
        return (value,)
    items = cast("list[object]", checked(value, list, name))
    return tuple(checked(item, str, f"{name}[{i}]") for i, item in enumerate(items))


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What all routes that generate text have in common."""

    model: str
    """The model asked for; empty: the one there is."""
    max_tokens: int
    n: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    user: str
    stream: bool
    diffusing: bool
    """Stream the whole state of the text after every denoising step."""
    include_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a route takes for fields that a request leaves out."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


def take_options(fields: Fields, defaults: Defaults, *, limit: str = "max_tokens") -> Options:
    """Take the common fields; `limit` names the one for `max_tokens`. Raises `ApiError`."""
    stop = take_stops(fields)
    stream = fields.take("stream", bool, False)
    diffusing = fields.take("diffusing", bool, False)
    if diffusing and not stream:
        raise ApiError("diffusing needs stream: true", param="diffusing")
    return Options(
        model=fields.take("model", str, ""),
        max_tokens=fields.take_count(limit, defaults.max_tokens, MAX_TOKENS),
        n=fields.take_count("n", 1, MAX_CHOICES),
        temperature=fields.take_number("temperature", defaults.temperature, 0.0, 2.0),
        top_p=fields.take_number("top_p", defaults.top_p, MIN_TOP_P, 1.0),
        # Without a seed, asking again is asking for something else.
        seed=fields.take("seed", int, secrets.randbits(48)),
        stop=stop,
        user=fields.take("user", str, ""),
        stream=stream,
        diffusing=diffusing,
        include_usage=_take_include_usage(fields, stream),
    )


def take_stops(fields: Fields) -> tuple[str, ...]:
    """The texts at which an answer ends. Raises `ApiError`."""
    stop = fields.take_raw("stop")
    stops = () if stop is None else strings(stop, "stop")
    if len(stops) > MAX_STOPS or "" in stops:
        raise ApiError(f"stop takes up to {MAX_STOPS} strings, none of them empty", param="stop")
    return tuple(map(with_line_feeds, stops))


def with_line_feeds(text: str) -> str:
    """`text` with the only line ends that the model knows."""
    return text.replace("\r\n", "\n")


def _take_include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.take_raw("stream_options")
    if value is None:
        return False
    if not stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    given = cast("dict[str, Any]", checked(value, dict, "stream_options"))
    options = Fields(given, where="stream_options.")
    include_usage = options.take("include_usage", bool, False)
    # Padding against eavesdroppers, on by default at OpenAI; here it can only be declined.
    options.finish({"include_obfuscation": (False,)})
    return include_usage
