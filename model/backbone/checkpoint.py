"""A GGUF file or a Hugging Face folder -> the backbone: a frozen causal Transformer and its
tokenizer.

Nothing of a checkpoint is run: weights are read as numbers, the tokenizer as data.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from model.api import CheckpointError
from model.backbone import gguf_model
from model.backbone.catalogue import KNOWN, checked
from model.backbone.digest import sha256_of
from model.backbone.gguf_file import MAGIC, SUFFIX, GgufFile
from model.backbone.tokenizer import BackboneTokenizer
from model.families.configs import CONFIG, is_causal, read_causal_config, read_json
from model.families.tokenizer import SETTINGS, has_mask_token
from model.families.weights import load_transformer, weight_files
from model.transformer import Transformer, TransformerConfig

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Backbone:
    """A causal language model of code, as its file has it."""

    model: Transformer
    tokenizer: BackboneTokenizer
    path: Path
    digest: str
    """SHA-256 of the file, or of a folder's weight files one after the other."""
    chat_template: str | None
    """The Jinja template of conversations, if the checkpoint has one."""


@dataclass(frozen=True, slots=True)
class OpenedBackbone:
    """All of a backbone but its weights, which whoever has packed them need not read."""

    config: TransformerConfig
    tokenizer: BackboneTokenizer
    path: Path
    digest: str
    chat_template: str | None
    read_weights: Callable[[torch.device | str, torch.dtype], Transformer]

    def load(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Backbone:
        """The weights, too. Raises `CheckpointError`."""
        model = self.read_weights(device, dtype)
        return Backbone(model, self.tokenizer, self.path, self.digest, self.chat_template)


def is_backbone(path: Path) -> bool:
    """Whether `path` is what `load_backbone` reads: a GGUF file (or one named so), or a Hugging
    Face folder of a causal model. One with a mask token is a diffusion model, of the families."""
    if path.is_file():
        return path.suffix == SUFFIX or _starts_with(path, MAGIC)
    if not (path / CONFIG).is_file():
        return False
    try:
        return is_causal(read_json(path / CONFIG)) and not has_mask_token(path)
    except CheckpointError:
        return False


def open_backbone(path: Path) -> OpenedBackbone:
    """Read what a backbone is, and how its text is cut. Raises `CheckpointError`."""
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}; `mezzotint download` fetches one")
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter to the others
        if path.is_file():
            file = GgufFile(path)
            config = gguf_model.read_config(file)
            digest = beside.submit(lambda: _known_digest(path) or sha256_of(path))
            tokenizer = BackboneTokenizer.from_gguf(file, config)
            template = file.metadata.get("tokenizer.chat_template")
            return OpenedBackbone(
                config, tokenizer, path, digest.result(), template,
                lambda device, dtype: gguf_model.load_transformer(
                    file, config, device=device, dtype=dtype
                ),
            )  # fmt: skip
        config = read_causal_config(path)
        tokenizer = BackboneTokenizer.from_directory(path, config)
        files = weight_files(path)
        if missing := [file.name for file in files if not file.is_file()]:
            raise CheckpointError(
                f"{path} lacks {', '.join(missing)}; fetch the checkpoint again (only safetensors "
                "are read)"
            )
        return OpenedBackbone(
            config, tokenizer, path, sha256_of(*files), _template_in(path),
            lambda device, dtype: load_transformer(path, config, device=device, dtype=dtype),
        )  # fmt: skip


def load_backbone(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Backbone:
    """Read a backbone onto `device`, in `dtype`. Raises `CheckpointError`."""
    return open_backbone(path).load(device=device, dtype=dtype)


def _known_digest(path: Path) -> str | None:
    """Of a file of the catalogue, which was checked when it came."""
    return next((known.sha256 for known in KNOWN.values() if checked(known) == path), None)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _template_in(directory: Path) -> str | None:
    """A file of its own, or an entry of the tokenizer's settings, which may hold several."""
    if (directory / TEMPLATE).is_file():
        return (directory / TEMPLATE).read_text(encoding="utf-8")
    if not (directory / SETTINGS).is_file():
        return None
    found = read_json(directory / SETTINGS).get("chat_template")
    if isinstance(found, list):
        named = cast("list[dict[str, Any]]", found)
        found = next((entry["template"] for entry in named if entry["name"] == "default"), None)
    return found if isinstance(found, str) else None
