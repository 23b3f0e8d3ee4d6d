"""A tiny random backbone, and engines around it that are closed again."""

from __future__ import annotations

import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from model.engine.draft.choice import BackboneVocabulary
from model.engine.draft.drafters import GuessDrafter, RepetitionDrafter
from model.engine.draft.verify import VerifyingDecoder
from model.engine.engine import Engine
from model.engine.run.backbone_runner import BackboneRunner
from model.engine.run.torch_forward import TorchForward
from model.transformer import Transformer, TransformerConfig

# importlib mode, in which pytest runs, leaves the tests' own helpers out.
sys.path.append(str(Path(__file__).parent))

VOCAB_SIZE = 64


class Letters:
    """What the tiny backbone's tokens stand for: letters, pairs of them, and a few more."""

    vocabulary = BackboneVocabulary(
        end_ids=frozenset({60, 61}),
        forbidden=torch.tensor([56, 57, 58, 59, 62, 63]),
    )

    def __init__(self) -> None:
        letters = string.ascii_lowercase
        pairs = [a + b for a, b in zip(letters, letters[1:] + "a", strict=True)]
        texts = [*letters, *pairs, "\n", " ", "(", ")"]
        self._bytes = [text.encode() for text in texts]
        self._bytes += [b""] * (VOCAB_SIZE - len(texts))

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def allowed_after(self, rest: bytes) -> list[int]:
        return [
            token for token, found in enumerate(self._bytes)
            if found and (found.startswith(rest) or rest.startswith(found))
        ]  # fmt: skip

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._bytes.index(char.encode()) for char in text)

    def text(self, ids: tuple[int, ...]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


@pytest.fixture(scope="session")
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def model() -> Transformer:
    """Random, but not indifferent: it has opinions, and sometimes ends a text."""
    config = TransformerConfig(
        model_type="qwen2",
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        ffn_size=48,
        max_positions=512,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        is_tied=False,
        qkv_bias=True,
        attention="causal",
        shifts_logits=True,
    )
    torch.manual_seed(3)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.4)
    return model.requires_grad_(False).eval()


@pytest.fixture
def make_engine(model: Transformer, letters: Letters) -> Iterator[Callable[..., Engine]]:
    """`make_engine(num_pages=…)`: an engine, optionally with room for few contexts only."""
    engines: list[Engine] = []

    def make(num_pages: int = 512) -> Engine:
        forward = TorchForward(model)
        config = model.config
        page_bytes = 16 * 2 * config.num_layers * config.num_kv_heads * config.head_dim * 4
        runner = BackboneRunner(forward, cache_bytes=num_pages * page_bytes)
        drafters = (GuessDrafter(), RepetitionDrafter())
        engines.append(Engine(VerifyingDecoder(runner, letters.vocabulary, letters, drafters)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
