"""Chat templates: how a checkpoint wants a conversation written down.

A template is a program that comes with a checkpoint. It runs in Jinja's sandbox, with the settings
and helpers that `transformers` gives it, since templates are written for those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.api import CheckpointError, InvalidRequestError

_CONTROL = 3
"""Of `tokenizer.ggml.token_type`: tokens that stand for no text."""

Message = Mapping[str, str]
"""`role` and `content`."""


class ChatTemplate:
    """A checkpoint's template, and the special tokens that it may name."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], reserved: frozenset[str]
    ) -> None:
        """`special_tokens`: what the template calls them (`bos_token`), and their texts;
        `reserved`: texts that no message may hold.

        Raises `CheckpointError` for a template that is none.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # Jinja's own escapes what HTML would stumble over.
        environment.filters["tojson"] = _to_json  # pyright: ignore[reportUnknownMemberType]
        helpers = {"raise_exception": _refuse, "strftime_now": _strftime_now}
        self._special_tokens = dict(special_tokens)
        self._reserved = reserved
        try:
            self._template = environment.from_string(source, helpers)
        except TemplateError as error:
            raise CheckpointError(f"the chat template is malformed: {error}") from error

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> ChatTemplate | None:
        """The template of a GGUF file or a folder; None where there is none. Raises
        `CheckpointError` for files that cannot be read."""
        if checkpoint.is_file():
            return cls._of_gguf(checkpoint)
        return cls._of_folder(checkpoint)

    @classmethod
    def _of_gguf(cls, file: Path) -> ChatTemplate | None:
        # `gguf` takes a moment to import, which folders need not pay.
        from model.backbone.gguf_file import GgufFile

        metadata = GgufFile(file).metadata
        source, tokens = metadata.get("tokenizer.chat_template"), metadata["tokenizer.ggml.tokens"]
        if not isinstance(source, str):
            return None
        kinds = zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
        reserved = frozenset(token for token, kind in kinds if kind == _CONTROL)
        named = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        special_tokens = {f"{n}_token": tokens[i] for n, i in named.items() if i is not None}
        return cls(source, special_tokens, reserved)

    @classmethod
    def _of_folder(cls, directory: Path) -> ChatTemplate | None:
        """The template in `chat_template.jinja` or `tokenizer_config.json`."""
        path = directory / "tokenizer_config.json"
        config = _read_config(path)
        file = directory / "chat_template.jinja"
        try:
            source = file.read_text(encoding="utf-8") if file.is_file() else _source_in(config)
            special_tokens = {
                name: text
                for name, token in config.items()
                if name.endswith("_token") and (text := _content(token))
            }
            reserved = _reserved(config) | frozenset(special_tokens.values())
        except (OSError, UnicodeError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        except (TypeError, AttributeError, LookupError) as error:
            raise CheckpointError(f"{path} is no tokenizer's config: {error!r}") from error
        return None if source is None else cls(source, special_tokens, reserved)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that the assistant's next message follows.

        Raises `InvalidRequestError` when the template does not take these messages.
        """
        for index, message in enumerate(messages):
            held = next((token for token in self._reserved if token in message["content"]), None)
            if held is not None:
                raise InvalidRequestError(
                    f"messages[{index}].content holds the special token {held!r}, which could end "
                    "or open a message; write it differently"
                )
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # a program of somebody else's: it may raise anything
            raise InvalidRequestError(
                f"the checkpoint's chat template does not take these messages: {error}"
            ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return cast("dict[str, Any]", config)


def _source_in(config: Mapping[str, Any]) -> str | None:
    """The template of a tokenizer config, which may hold several by name."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = cast("list[dict[str, Any]]", found)
        found = next((entry["template"] for entry in named if entry["name"] == "default"), None)
    return found if isinstance(found, str) else None


def _reserved(config: Mapping[str, Any]) -> frozenset[str]:
    """The texts of all special tokens that a tokenizer config lists."""
    listed = cast("dict[str, dict[str, Any]]", config.get("added_tokens_decoder") or {})
    texts = (_content(token) for token in listed.values() if token.get("special"))
    return frozenset(text for text in texts if text)


def _content(token: object) -> str | None:
    """The text of a special token, which is written in one of two ways."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
