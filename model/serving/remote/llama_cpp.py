"""llama.cpp's `llama-server`: `POST /infill`.

The server knows its model's infill tokens, and keeps a cache of its own. Held against a real one in
`tests/model/serving/remote/test_real_llama_cpp.py`. What it documents as `prompt` (text after the
middle token) it really puts at the end of the prefix, so we leave it out.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from model.api import EngineAddress, EngineHealth, EngineUnavailableError
from model.serving.remote.dialect import Gap, Piece, Token
from model.serving.remote.link import Link


class LlamaCppDialect:
    """Speaks to llama.cpp. The server has one model, so the address's `model` is not sent."""

    def __init__(self, address: EngineAddress) -> None:
        self.path = "/infill"

    def body(self, gap: Gap) -> dict[str, object]:
        """The question, whose answer comes token by token."""
        return {
            "input_prefix": gap.prefix,
            "input_suffix": gap.suffix,
            "n_predict": gap.max_tokens,
            "temperature": gap.temperature,
            "top_p": gap.top_p,
            "seed": gap.seed,
            "n_probs": 1,
            "cache_prompt": True,
            "stream": True,
        }

    def piece(self, event: dict[str, Any]) -> Piece:
        """One token, or the end with its figures."""
        tokens = [
            Token(bytes(entry["bytes"]), math.exp(entry["logprob"]))
            for entry in event.get("completion_probabilities", ())
        ]
        timings: dict[str, Any] = event.get("timings", {})
        return Piece(
            text=str(event["content"]),
            tokens=tokens,
            finish=_finish(event),
            num_tokens=event.get("tokens_predicted"),
            num_encoded=timings.get("prompt_n"),
        )

    def drops(self, complaint: str) -> bool:
        """Nothing here is optional."""
        return False

    async def health(self, link: Link) -> EngineHealth:
        """How the server is; its `/health` looks at no key."""
        status, reply = await link.get("/health", accept=(503,))
        match reply:
            case {"status": "ok"} if status == 200:
                return EngineHealth(state="ready", message=f"llama.cpp at {link.name}")
            case {"error": {"message": str(message)}} if status == 503:
                return EngineHealth(state="loading", message=f"{link.name}: {message}")
            case _:
                raise EngineUnavailableError(f"{link.name} does not answer as llama.cpp does")


def _finish(event: dict[str, Any]) -> Literal["stop", "length"] | None:
    if not event["stop"]:
        return None
    return "length" if event.get("stop_type") == "limit" or event.get("truncated") else "stop"
