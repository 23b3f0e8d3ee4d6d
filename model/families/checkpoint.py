"""A folder of an open diffusion checkpoint -> its model and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from model.api import CheckpointError
from model.families.configs import read_config
from model.families.tokenizer import OpenTokenizer
from model.families.weights import Convert, load_transformer
from model.transformer import Transformer, TransformerConfig


def load_open_checkpoint(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    convert: Convert | None = None,
    check: Callable[[TransformerConfig], None] = lambda _: None,
) -> tuple[Transformer, OpenTokenizer]:
    """Read a checkpoint of one of the families in `model.families`.

    `convert` replaces the layers' products as they are loaded; `check` may refuse a configuration
    before that. Raises `CheckpointError` before anything is half loaded.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is no model: a GGUF file or a checkpoint directory is one"
        )
    config = read_config(directory)
    tokenizer = OpenTokenizer.from_directory(directory, config)
    check(config)
    model = load_transformer(directory, config, device=device, dtype=dtype, convert=convert)
    return model, tokenizer
