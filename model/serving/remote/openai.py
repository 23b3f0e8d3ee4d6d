"""An OpenAI-compatible `POST /v1/completions` that fills in the middle.

With `prompt` and `suffix` where the server knows a suffix (SGLang with `--completion-template`, and
our own). vLLM refuses one: there the model's own infill prompt has to be given as a template, with
the text put into it here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal

from model.api import EngineAddress, EngineHealth, EngineUnavailableError, InvalidRequestError
from model.serving.remote.dialect import Gap, Piece, Token, listed_models, versioned
from model.serving.remote.link import Link

_OPTIONAL = ("logprobs", "stream_options", "seed", "top_p")
"""Fields that a server may not know, and that we can do without."""
_MAX_STOPS = 4


class OpenAIDialect:
    """Speaks to a completions endpoint."""

    def __init__(self, address: EngineAddress) -> None:
        self._version = versioned(address.url)
        self._model = address.model
        self._template = address.fim_template
        # <|fim_prefix|> and the like: a text that holds one would be read as another prompt.
        parts = re.split(r"\{prefix\}|\{suffix\}", self._template)
        self._markers = [part.strip() for part in parts if part.strip()]
        self._left_out = set[str]()

    @property
    def path(self) -> str:
        """Where a question goes."""
        return f"{self._version}/completions"

    def body(self, gap: Gap) -> dict[str, object]:
        """The question, whose answer comes token by token."""
        fields: dict[str, object] = {
            "model": self._model,
            **self._prompt(gap),
            "max_tokens": gap.max_tokens,
            "temperature": gap.temperature,
            "top_p": gap.top_p,
            "seed": gap.seed,
            "logprobs": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {name: value for name, value in fields.items() if name not in self._left_out}

    def _prompt(self, gap: Gap) -> dict[str, object]:
        if not self._template:
            return {"prompt": gap.prefix, "suffix": gap.suffix}
        for marker in self._markers:
            if marker in gap.prefix or marker in gap.suffix:
                raise InvalidRequestError(
                    f"the text around the cursor holds {marker}, by which this engine's model "
                    "tells the parts of its prompt apart"
                )
        # At once: the prefix may hold the word {suffix}.
        texts = {"{prefix}": gap.prefix, "{suffix}": gap.suffix}
        prompt = re.sub(r"\{prefix\}|\{suffix\}", lambda part: texts[part[0]], self._template)
        return {"prompt": prompt, "stop": self._markers[:_MAX_STOPS]}

    def piece(self, event: dict[str, Any]) -> Piece:
        """A few tokens, or the figures at the end."""
        return choice_piece(event)

    def drops(self, complaint: str) -> bool:
        """Leave out an optional field that the server complains of, from now on."""
        named = {name for name in _OPTIONAL if name in complaint} - self._left_out
        self._left_out |= named
        return bool(named)

    async def health(self, link: Link) -> EngineHealth:
        """Whether the server answers and takes the key; its first model, unless one was named."""
        models = await listed_models(link, f"{self._version}/models")
        if not self._model:
            if not models:
                raise InvalidRequestError(
                    f"{link.name} lists no model; set mezzotint.engine.model to one that it has"
                )
            self._model = models[0]
        if models and self._model not in models:
            raise InvalidRequestError(
                f"{link.name} has no model {self._model!r}; it lists {', '.join(models[:8])}"
            )
        return EngineHealth(
            state="ready", message=f"{self._model} at {link.name}", model=self._model
        )


def choice_piece(event: dict[str, Any]) -> Piece:
    """Read a completion, or a part of one, in OpenAI's shape."""
    usage: dict[str, Any] = event.get("usage") or {}
    details: dict[str, Any] = usage.get("prompt_tokens_details") or {}
    encoded = usage.get("prompt_tokens")
    choices = event["choices"]
    if not choices and not usage:
        raise EngineUnavailableError("the engine answered without a choice")
    choice: dict[str, Any] = choices[0] if choices else {"text": ""}
    return Piece(
        # Mistral's infill route answers in the shape of a chat.
        text=str(choice["text"] if "text" in choice else choice["message"]["content"]),
        tokens=list(_tokens(choice.get("logprobs") or {})),
        finish=_finish(choice.get("finish_reason")),
        num_tokens=usage.get("completion_tokens"),
        num_encoded=None if encoded is None else encoded - (details.get("cached_tokens") or 0),
    )


def _tokens(logprobs: dict[str, Any]) -> Iterator[Token]:
    """The tokens, told in the way of completions or (llama.cpp) of chats."""
    for entry in logprobs.get("content") or ():
        raw = entry.get("bytes")
        text = str(entry["token"]).encode() if raw is None else bytes(raw)
        yield Token(text, math.exp(entry["logprob"]))
    values = logprobs.get("token_logprobs") or ()
    for text, value in zip(logprobs.get("tokens") or (), values, strict=True):
        yield Token(str(text).encode(), math.exp(value))


def _finish(reason: object) -> Literal["stop", "length"] | None:
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"
