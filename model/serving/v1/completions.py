"""`/v1/completions` and `/v1/fim/completions`: the text between a prompt and a suffix.

The first is OpenAI's, the second Mercury's (a prompt, a suffix, more tokens by default). Ours
besides: `language`, an LSP language id; `truncation`, whether a context too long loses its far
edges (`auto`) or is refused (`disabled`); and `diffusing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from model.api import InfillRequest
from model.serving.fills import Fills
from model.serving.v1.answer import Call, answer, requests_for
from model.serving.v1.errors import ApiError
from model.serving.v1.fields import (
    MAX_CHOICES,
    Defaults,
    Fields,
    strings,
    take_options,
    with_line_feeds,
)
from model.serving.v1.served_model import ServedModel

COMPLETION_DEFAULTS = Defaults(max_tokens=16)
FIM_DEFAULTS = Defaults(max_tokens=512)


@dataclass(frozen=True, slots=True)
class TextShape:
    """A choice is a text."""

    id_prefix: str = "cmpl"
    object: str = "text_completion"
    chunk_object: str = "text_completion"

    def choice(self, text: str) -> dict[str, Any]:
        """See `Shape`."""
        return {"text": text}

    def chunk(self, text: str, *, is_first: bool) -> dict[str, Any]:
        """See `Shape`."""
        return {"text": text}


async def complete(body: bytes, served: ServedModel, fills: Fills, defaults: Defaults) -> Response:
    """Answer a completion. Raises `ApiError`."""
    return await answer(fills, read_call(body, served, defaults), TextShape())


def read_call(body: bytes, served: ServedModel, defaults: Defaults) -> Call:
    """Read and check a completion's body. Raises `ApiError`."""
    fields = Fields.of_body(body)
    options = take_options(fields, defaults)
    prompts = strings(fields.require("prompt"), "prompt")
    if not 1 <= len(prompts) * options.n <= MAX_CHOICES:
        raise ApiError(
            f"prompt and n ask for {len(prompts) * options.n} choices; 1..{MAX_CHOICES} are "
            "generated at once",
            param="prompt",
        )
    suffix = fields.take("suffix", str, "")
    language = fields.take("language", str, "")
    must_fit = _take_must_fit(fields)
    fields.finish()
    served.check(options.model)
    requests = [
        request
        for prompt in prompts
        for request in requests_for(
            InfillRequest(
                prefix=with_line_feeds(prompt),
                suffix=with_line_feeds(suffix),
                language=language,
                must_fit=must_fit,
            ),
            options,
        )
    ]
    is_crlf = any("\r\n" in text for text in (*prompts, suffix))
    line_end = "\r\n" if is_crlf else "\n"
    return Call(model=served.name, requests=requests, options=options, line_end=line_end)


def _take_must_fit(fields: Fields) -> bool:
    truncation = fields.take("truncation", str, "auto")
    if truncation not in ("auto", "disabled"):
        raise ApiError(
            f"truncation is {truncation!r}; use 'auto' or 'disabled'", param="truncation"
        )
    return truncation == "disabled"
