"""A folder of code that may be trained on, and a tiny backbone to train over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.backbone.checkpoint import Backbone, load_backbone
from model.denoiser import Denoiser, DenoiserConfig
from model.training.corpus import Document
from model.training.windows import WindowSampler, WindowShape

SHAPE = WindowShape(
    far_tokens=48, suffix_tokens=24, plain_tokens=64, branches=3, canvases=24, slots=4,
    wide_slots=6,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, code: str) -> Path:
    """One file of Python, under a permissive licence."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "stack.py").write_text(code)
    (folder / "SOURCE.json").write_text('{"licence": "MIT"}')
    return folder


@pytest.fixture(scope="session")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    """Tiny, random, frozen."""
    backbone = load_backbone(tiny_backbone_folder)
    backbone.model.requires_grad_(False)
    return backbone


@pytest.fixture
def document(code: str) -> Document:
    """A file whose functions and lines are marked as pieces of its syntax tree."""
    starts = [i for i in range(len(code)) if code.startswith("\n    ", i)]
    spans = tuple((i + 5, code.find("\n", i + 5)) for i in starts)
    return Document(code, "python", "stack", spans)


@pytest.fixture
def sampler(document: Document, backbone: Backbone) -> WindowSampler:
    """Windows of one small file."""
    return WindowSampler([document], backbone.tokenizer, SHAPE, seed=0)


@pytest.fixture
def model(backbone: Backbone) -> Denoiser:
    """A new denoiser, always the same, that drafts all tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DenoiserConfig.of(backbone.model.config, num_layers=1)
        vocabulary = torch.arange(backbone.model.config.vocab_size)
        model = Denoiser.of(config, backbone.model, vocabulary)
        model.start_from(backbone.model)
    return model
