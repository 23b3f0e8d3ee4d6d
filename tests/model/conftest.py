"""A tokenizer, a denoiser and a checkpoint small enough to build for every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from model.checkpoint import save_checkpoint
from model.denoiser import Denoiser, DenoiserConfig
from model.tokenizer import CodeTokenizer

# These tests are too small to gain from threads, and share their machine.
torch.set_num_threads(1)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no failure of the code.
settings.register_profile("mezzotint", deadline=None, max_examples=60)
settings.load_profile("mezzotint")

CODE = '''\
class Stack:
    """Items, the last one first."""

    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)
        return self

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()


def total(numbers):
    result = 0
    for number in numbers:
        if number > 0:
            result += number
    return result
'''


@pytest.fixture(scope="session")
def code() -> str:
    """A short file of Python."""
    return CODE


@pytest.fixture(scope="session")
def tokenizer() -> CodeTokenizer:
    """A tokenizer trained on `code`."""
    return CodeTokenizer.train([CODE] * 3, 400)


@pytest.fixture(scope="session")
def make_denoiser() -> Callable[..., Denoiser]:
    """`make_denoiser(vocab_size, dtype=…, **sizes)`: a tiny denoiser none of whose weights is 0.

    A fresh denoiser has silent residual branches, whose errors no test would hear.
    """

    def make(vocab_size: int, *, dtype: torch.dtype = torch.float64, **sizes: int) -> Denoiser:
        defaults = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "ffn_size": 24}
        config = DenoiserConfig(vocab_size=vocab_size, **{**defaults, **sizes})
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(7)
            model = Denoiser(config)
            for parameter in model.parameters():
                parameter.add_(0.25 * torch.randn(parameter.shape))
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: CodeTokenizer,
    make_denoiser: Callable[..., Denoiser],
) -> Path:
    """The directory of a random model that ends its spans sooner or later."""
    model = make_denoiser(tokenizer.vocab_size, dtype=torch.float32, max_context=128)
    with torch.no_grad():
        model.embedding.weight[tokenizer.end_id] *= 3
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(directory, model, tokenizer)
    return directory
