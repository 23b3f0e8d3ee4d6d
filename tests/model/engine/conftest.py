"""A denoiser that is random but not indifferent, and engines around it that are closed again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from model.denoiser import Denoiser
from model.engine.assembly import engine_for
from model.engine.engine import Engine
from model.engine.cache.page_pool import page_bytes
from model.tokenizer import CodeTokenizer

# importlib mode, in which pytest runs, leaves the tests' own helpers out.
sys.path.append(str(Path(__file__).parent))

MAX_CONTEXT = 64
"""Short, so that a test's streams outgrow it."""


@pytest.fixture(scope="session")
def model(tokenizer: CodeTokenizer, make_denoiser: Callable[..., Denoiser]) -> Denoiser:
    """A random denoiser that sometimes ends a span: its `<eom>` is loud, for better or worse."""
    model = make_denoiser(
        tokenizer.vocab_size,
        dtype=torch.float32,
        hidden_size=32,
        ffn_size=48,
        max_context=MAX_CONTEXT,
    )
    with torch.no_grad():
        model.embedding.weight[tokenizer.end_id] *= 3
    return model


@pytest.fixture
def make_engine(model: Denoiser, tokenizer: CodeTokenizer) -> Iterator[Callable[..., Engine]]:
    """`make_engine(num_pages=…)`: an engine, optionally with room for few contexts only."""
    engines: list[Engine] = []

    def make(num_pages: int | None = None) -> Engine:
        per_page = page_bytes(model.config, model.embedding.weight.dtype)
        budget = None if num_pages is None else num_pages * per_page
        engines.append(engine_for(model, tokenizer, cache_bytes=budget))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
