"""`/v1/chat/completions`, and Mercury's `/v1/edit/completions` and `/v1/apply/completions`.

All three write a conversation as the checkpoint's chat template wants it, and generate what follows
it. Edit and apply take one user message of Mercury's form; since models other than Mercury were not
trained on its markers, a sentence before them says what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from starlette.responses import Response

from model.api import CompletionError, InfillRequest
from model.serving.fills import Fills
from model.serving.v1.answer import Call, answer, requests_for
from model.serving.v1.chat_template import ChatTemplate
from model.serving.v1.errors import ApiError
from model.serving.v1.fields import Defaults, Fields, checked, take_options
from model.serving.v1.served_model import ServedModel

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles, and what templates call them."""

_EMPTY_MESSAGE_FIELDS: Mapping[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""What a message may have besides: an answer that OpenAI's client sends back has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What one of the routes takes and asks for."""

    defaults: Defaults
    markers: tuple[str, ...] = ()
    """What the one user message must hold; empty: any conversation will do."""
    instruction: str = ""
    """What the model is told before that message."""
    nothing: str | None = ""
    """The content of an answer without text."""


CHAT = Conversation(defaults=Defaults(max_tokens=1024))
EDIT = Conversation(
    defaults=Defaults(max_tokens=1024, temperature=0.3, top_p=0.8),
    markers=("<|current_file_content|>", "<|code_to_edit|>", "<|/code_to_edit|>"),
    instruction=(
        "Below are a file, the region of it between <|code_to_edit|> and <|/code_to_edit|> with "
        "the cursor at <|cursor|>, and the latest edits. Write the region as the next edit would "
        "leave it, in one fenced code block and nothing else."
    ),
    nothing=None,
)
APPLY = Conversation(
    defaults=Defaults(max_tokens=1024),
    markers=("<|original_code|>", "<|update_snippet|>"),
    instruction=(
        "Below are a file after <|original_code|> and a change to it after <|update_snippet|>. "
        "Write the whole file with the change made, and nothing else."
    ),
)


@dataclass(frozen=True, slots=True)
class ChatShape:
    """A choice is a message of the assistant."""

    nothing: str | None
    """The content of a message without text."""

    id_prefix: str = "chatcmpl"
    object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def choice(self, text: str) -> dict[str, Any]:
        """See `Shape`."""
        content = text or self.nothing
        return {"message": {"role": "assistant", "content": content, "refusal": None}}

    def chunk(self, text: str, *, is_first: bool) -> dict[str, Any]:
        """See `Shape`."""
        role = {"role": "assistant"} if is_first else {}
        return {"delta": role | {"content": text}}


async def chat(body: bytes, served: ServedModel, fills: Fills, route: Conversation) -> Response:
    """Answer a conversation. Raises `ApiError`."""
    # A template is a program that may take its time; in a thread it keeps nobody waiting.
    call = await asyncio.to_thread(read_call, body, served, route)
    return await answer(fills, call, ChatShape(route.nothing))


def read_call(body: bytes, served: ServedModel, route: Conversation) -> Call:
    """Read, check and render a conversation. Raises `ApiError`."""
    fields = Fields.of_body(body)
    options = take_options(fields, route.defaults, limit=_limit_of(fields))
    messages = read_messages(fields.require("messages"))
    fields.finish()
    served.check(options.model)
    if route.markers:
        messages = _instructed(messages, route)
    try:
        request = InfillRequest(
            prefix=_template(served).render(messages),
            special_tokens_in_prefix=True,
            must_fit=True,  # a conversation without its beginning is another one
        )
    except CompletionError as error:
        raise ApiError.of(error) from error
    return Call(model=served.name, requests=requests_for(request, options), options=options)


def _limit_of(fields: Fields) -> str:
    """Which of its two names the number of tokens goes by. Raises `ApiError` for both."""
    new, old = "max_completion_tokens", "max_tokens"
    if fields.has(new) and fields.has(old):
        raise ApiError(f"{new} is the new name of {old}; send one of them", param=old)
    return new if fields.has(new) else old


def _template(served: ServedModel) -> ChatTemplate:
    template = served.template
    if template is None:
        raise ApiError(
            f"the model {served.name!r} has no chat template, so it does not chat, edit or apply; "
            "ask /v1/completions with a prompt and a suffix, or serve a checkpoint that has one",
            param="model",
            code="no_chat_template",
        )
    return template


def read_messages(value: object) -> list[dict[str, str]]:
    """The messages of a conversation, their text parts joined. Raises `ApiError`."""
    items = cast("list[object]", checked(value, list, "messages"))
    if not items:
        raise ApiError("messages is empty", param="messages")
    return [_read_message(item, f"messages[{index}]") for index, item in enumerate(items)]


def _read_message(value: object, name: str) -> dict[str, str]:
    given = cast("Mapping[str, Any]", checked(value, dict, name))
    fields = Fields(given, where=f"{name}.")
    role = checked(fields.require("role"), str, f"{name}.role")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise ApiError(f"{name}.role is {role!r}; use one of {known}", param=f"{name}.role")
    content = _read_content(fields.require("content"), f"{name}.content")
    fields.finish(_EMPTY_MESSAGE_FIELDS)
    return {"role": _ROLES[role], "content": content}


def _read_content(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    texts: list[str] = []
    for index, part in enumerate(cast("list[object]", checked(value, list, name))):
        where = f"{name}[{index}]"
        fields = Fields(cast("Mapping[str, Any]", checked(part, dict, where)), where=f"{where}.")
        kind = fields.require("type")
        if kind != "text":
            raise ApiError(f"{where}.type is {kind!r}; only text is read", param=f"{where}.type")
        texts.append(checked(fields.require("text"), str, f"{where}.text"))
        fields.finish({})
    return "".join(texts)


def _instructed(messages: Sequence[dict[str, str]], route: Conversation) -> list[dict[str, str]]:
    """The one message of Mercury's form, after what the model has to know of it."""
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise ApiError("messages must be one message of the role user", param="messages")
    content = messages[0]["content"]
    for marker in route.markers:
        if marker not in content:
            raise ApiError(
                f"messages[0].content lacks {marker}; see docs/serving.md for its form",
                param="messages[0].content",
            )
    # Not a message of the system: there are templates without that role.
    return [{"role": "user", "content": f"{route.instruction}\n\n{content}"}]
