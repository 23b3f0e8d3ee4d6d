"""What engines answer, field by field.

llama.cpp's were recorded from a real server (build of October 2026; the settings it echoes are left
out). OpenAI's are those that vLLM and SGLang document and that the same llama.cpp answers on
`/v1/completions`. Mercury's is put together from its documentation: nobody here has asked the real
one.
"""

from __future__ import annotations

import math
from typing import Any

LLAMA_CPP = {"server": "llama.cpp"}
LLAMA_CPP_LOADING = {
    "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}
}
LLAMA_CPP_NO_KEY = {
    "error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}
}
LLAMA_CPP_TOO_LONG = {
    "error": {
        "code": 400,
        "message": "request (1542 tokens) exceeds the available context size (256 tokens), "
        "try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 1542,
        "n_ctx": 256,
    }
}


def llama_cpp_token(text: str, probability: float, count: int) -> dict[str, Any]:
    entry = {
        "id": 77,
        "token": text,
        "bytes": list(text.encode()),
        "logprob": math.log(probability),
    }
    return {
        "index": 0,
        "content": text,
        "tokens": [77],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": count,
        "tokens_evaluated": 9,
        "completion_probabilities": [{**entry, "top_logprobs": [entry]}],
    }


def llama_cpp_end(count: int, stop_type: str = "eos") -> dict[str, Any]:
    return {
        "index": 0,
        "content": "",
        "tokens": [],
        "id_slot": 1,
        "stop": True,
        "model": "/models/tiny.gguf",
        "tokens_predicted": count,
        "tokens_evaluated": 9,
        "prompt": "<s><PRE>ab<SUF>cd<MID>",
        "has_new_line": False,
        "truncated": False,
        "stop_type": stop_type,
        "stopping_word": "",
        "tokens_cached": 12,
        "timings": {"cache_n": 7, "prompt_n": 2, "prompt_ms": 1.1, "predicted_n": count},
    }


OPENAI_MODELS = {
    "object": "list",
    "data": [
        {"id": "Qwen/Qwen2.5-Coder-1.5B", "object": "model", "owned_by": "vllm"},
        {"id": "other", "object": "model", "owned_by": "vllm"},
    ],
}


def openai_token(text: str, probability: float) -> dict[str, Any]:
    logprobs = {
        "text_offset": [0],
        "token_logprobs": [math.log(probability)],
        "tokens": [text],
        "top_logprobs": [{text: math.log(probability)}],
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}


def openai_end(reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason}
    return {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}


def openai_usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return {"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": usage}


def mercury_answer(text: str, reason: str = "stop") -> dict[str, Any]:
    return {
        "id": "cmpl-6f0a",
        "object": "text_completion",
        "created": 1764000000,
        "model": "mercury-edit-2",
        "choices": [{"index": 0, "text": text, "finish_reason": reason}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24},
    }


MERCURY_MODELS = {
    "object": "list",
    "data": [{"id": "mercury-2", "object": "model"}, {"id": "mercury-edit-2", "object": "model"}],
}
