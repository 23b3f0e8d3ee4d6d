"""Puts an engine together: the runner that suits model and device, and the loop around it."""

from __future__ import annotations

from collections.abc import Sequence

from model.denoiser import Denoiser
from model.engine.cpu_choice import cpu_runner
from model.engine.engine import Engine
from model.engine.graphed_runner import GraphedRunner
from model.engine.model_runner import ModelRunner
from model.engine.n_grams import NGrams, Strength
from model.engine.sampler import Vocabulary
from model.tokenizer import CodeTokenizer


def engine_for(
    model: Denoiser,
    tokenizer: CodeTokenizer,
    *,
    cache_bytes: int | None = None,
    is_float8: bool = False,
    chooses: bool = False,
    strengths: Sequence[Strength] = (),
) -> Engine:
    """An engine around a denoiser, where the denoiser is.

    `cache_bytes` is the context cache's budget (None: by what the device has); `is_float8` rounds
    the weights of canvas steps, on CUDA. Where it `chooses`, a moment is taken to measure what is
    fastest on this CPU (`cpu_choice`). `strengths` are those of the document's n-grams (none: these
    do not count). Raises `ValueError` for sizes that do not go together.
    """
    device = model.embedding.weight.device
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size, device)
    if device.type == "cuda":
        runner = GraphedRunner(model, vocabulary, cache_bytes=cache_bytes, is_float8=is_float8)
    elif chooses:
        runner = cpu_runner(model, cache_bytes=cache_bytes)
    else:
        runner = ModelRunner(model, cache_bytes=cache_bytes)
    n_grams = NGrams(tokenizer, vocabulary, strengths) if strengths else None
    return Engine(runner, vocabulary, n_grams=n_grams)
