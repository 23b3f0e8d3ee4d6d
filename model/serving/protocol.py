"""The wire format between `http_server` and `client`: JSON, one object a line, strictly decoded.

    POST /infill   {"protocol": 7, "request": {…}, "frames": false}
    answer         {"frame": {…}}*  then  {"result": {…}} or {"error": {"kind", "message"}}

The objects are the dataclasses of `model.api`, field by field. Decoding accepts exactly their
fields and types, so that a client and a server of different versions fail with a sentence.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from functools import cache
from typing import Any, Literal, TypeVar, cast

from model.api import (
    CheckpointError,
    CompletionError,
    EngineOverloadedError,
    EngineUnavailableError,
    Frame,
    InfillRequest,
    InfillResult,
    InvalidRequestError,
    SupersededError,
)

PROTOCOL_VERSION = 7
"""Raised whenever a peer of the version before would misread or refuse what we send."""

HEARTBEAT_S = 2.0
"""Seconds between two lines of `GET /lease`."""

_ERROR_KINDS: dict[str, type[CompletionError]] = {
    "invalid_request": InvalidRequestError,
    "checkpoint": CheckpointError,
    "unavailable": EngineUnavailableError,
    "overloaded": EngineOverloadedError,
    "superseded": SupersededError,
    "internal": CompletionError,
}
_SCALARS: dict[type, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
}

T = TypeVar("T")


class ProtocolError(ValueError):
    """A message is not of this protocol. Its text names the field at fault."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InfillCall:
    """The body of `POST /infill`."""

    protocol: int = PROTOCOL_VERSION
    request: InfillRequest
    frames: bool = False
    """Whether the client wants to see the canvas after every denoising step."""


def encode_call(call: InfillCall) -> bytes:
    """The body of `POST /infill`."""
    return _to_json(dataclasses.asdict(call))


def decode_call(body: bytes) -> InfillCall:
    """Read the body of `POST /infill`.

    Raises `ProtocolError` for a malformed body and `InvalidRequestError` for a request whose
    values are out of range.
    """
    fields = decode_object(body)
    if fields.get("protocol") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the request speaks protocol {fields.get('protocol')!r} and this engine "
            f"{PROTOCOL_VERSION}; run the same version of Mezzotint on both sides"
        )
    return decode(InfillCall, fields, "body")


def encode_reply(reply: Frame | InfillResult | CompletionError) -> bytes:
    """One line of the answer to `POST /infill`."""
    if isinstance(reply, CompletionError):
        return encode_object({"error": encode_error(reply)})
    key = "frame" if isinstance(reply, Frame) else "result"
    return encode_object({key: dataclasses.asdict(reply)})


def decode_reply(line: str | bytes) -> Frame | InfillResult | CompletionError:
    """Read one line of the answer to `POST /infill`, or the body of a refusal.

    Raises `ProtocolError`.
    """
    match decode_object(line):
        case {"frame": frame}:
            return decode(Frame, frame, "frame")
        case {"result": result}:
            return decode(InfillResult, result, "result")
        case {"error": {"kind": str(kind), "message": str(message)}}:
            return _ERROR_KINDS.get(kind, CompletionError)(message)
        case _:
            raise ProtocolError("a reply must hold a frame, a result or an error")


def encode_error(error: CompletionError) -> dict[str, str]:
    """The kind and message of an error; a class of no kind goes by its nearest base's."""
    kinds = {cls: kind for kind, cls in _ERROR_KINDS.items()}
    kind = next(kinds[cls] for cls in type(error).__mro__ if cls in kinds)
    return {"kind": kind, "message": str(error)}


def encode_object(fields: dict[str, Any]) -> bytes:
    """One JSON object and a line feed."""
    return _to_json(fields) + b"\n"


def decode_object(text: str | bytes) -> dict[str, Any]:
    """Read one JSON object.

    Raises `ProtocolError`.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Only where it broke: the text may hold somebody's source code.
        place = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ProtocolError(f"the message is not JSON: malformed{place}") from None
    if not isinstance(fields, dict):
        raise ProtocolError("the message must be a JSON object")
    return cast("dict[str, Any]", fields)


def decode(cls: type[T], value: object, where: str) -> T:
    """Build the dataclass `cls` from decoded JSON; `where` names `value` in errors.

    Raises `ProtocolError`, and whatever the constructor of `cls` raises.
    """
    if not isinstance(value, dict):
        raise ProtocolError(f"{where} must be an object")
    given = cast("dict[str, object]", value)
    hints = _field_hints(cls)
    for name in given:
        if name not in hints:
            raise ProtocolError(f"{where} has no field {name!r}")
    for field in dataclasses.fields(cast("Any", cls)):
        has_default = field.default is not dataclasses.MISSING
        if field.name not in given and not has_default:
            raise ProtocolError(f"{where} lacks the field {field.name!r}")
    return cls(**{name: _decode(hints[name], v, f"{where}.{name}") for name, v in given.items()})


@cache
def _field_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, value: object, where: str) -> Any:
    """`value` as the annotation `hint` wants it; knows the annotations that `model.api` uses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _decode(arguments[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ProtocolError(f"{where} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{where} must be an array")
        items = cast("list[object]", value)
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return decode(cast("type[Any]", hint), value, where)
    return _decode_scalar(hint, value, where)


def _decode_scalar(hint: type, value: object, where: str) -> Any:
    # JSON's true is an int to Python, and 1 is a float to people.
    if not isinstance(value, _SCALARS[hint]) or (isinstance(value, bool) and hint is not bool):
        raise ProtocolError(f"{where} must be of type {hint.__name__}")
    try:
        return hint(value)
    except OverflowError:
        raise ProtocolError(f"{where} is too large a number") from None


def _to_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii")
