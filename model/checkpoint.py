"""Checkpoint directories: `model.safetensors`, `config.json`, `tokenizer.json`.

`load_checkpoint` reads our own, `load_open_checkpoint` those of the families in `model.families`;
`model_type` tells which one a directory holds.

`config.json` remembers the tokenizer's digest, so that weights cannot be read with the wrong one.
Files are written beside their place and then moved there: a crash leaves no half-written one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.api import CheckpointError
from model.denoiser import Denoiser, DenoiserConfig
from model.families.configs import FAMILIES, read_config, read_json
from model.families.tokenizer import OpenTokenizer
from model.families.weights import Convert, load_transformer
from model.tokenizer import CodeTokenizer
from model.transformer import Transformer, TransformerConfig

MODEL_TYPE = "mezzotint"
FORMAT_VERSION = 1
N_GRAMS = "n_gram_strengths"
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def save_checkpoint(
    directory: Path,
    model: Denoiser,
    tokenizer: CodeTokenizer,
    *,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, weights in bf16. `training` is kept for people: steps, losses, date."""
    draft = directory.with_name(f".{directory.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        _write_files(draft, model, tokenizer, training or {})
    except BaseException:  # a full disk is not left fuller
        shutil.rmtree(draft, ignore_errors=True)
        raise
    directory.mkdir(exist_ok=True)
    for file in draft.iterdir():  # file by file: a model card beside the weights stays
        os.replace(file, directory / file.name)
    draft.rmdir()


def _write_files(
    directory: Path, model: Denoiser, tokenizer: CodeTokenizer, training: dict[str, Any]
) -> None:
    weights = {name: t.to(torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    save_file(weights, directory / WEIGHTS)
    tokenizer.save(directory / TOKENIZER)
    config = {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "tokenizer_sha256": tokenizer.digest,
        "denoiser": dataclasses.asdict(model.config),
        "training": training,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Denoiser, CodeTokenizer]:
    """Read a checkpoint directory. Raises `CheckpointError` before anything is half loaded."""
    config = _read_config(directory)
    tokenizer = CodeTokenizer.from_file(_existing(directory / TOKENIZER))
    if tokenizer.digest != config["tokenizer_sha256"]:
        raise CheckpointError(
            f"{directory / TOKENIZER} is not the tokenizer these weights were trained with; "
            "take both from the same checkpoint"
        )
    weights_file = _existing(directory / WEIGHTS)
    try:
        weights = load_file(weights_file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{weights_file} is damaged ({error}); fetch or train the checkpoint again"
        ) from error
    try:
        model_config = DenoiserConfig(**config["denoiser"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG} describes no denoiser: {error}") from error
    with torch.device("meta"):
        model = Denoiser(model_config)
    _check_shapes(weights_file, model, weights)
    model = Denoiser(model_config)
    model.load_state_dict(weights)
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def n_gram_strengths(directory: Path) -> list[tuple[int, float]]:
    """Orders and strengths of the n-grams that go with the weights (`model.engine.n_grams`); none
    where none were fitted. Raises `CheckpointError`."""
    fitted = _read_config(directory).get(N_GRAMS, {})
    try:
        return [(int(order), float(strength)) for order, strength in fitted.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory / CONFIG} has no usable {N_GRAMS}: {error}; take the key out or fit them "
            "again with `mezzotint evaluate n-grams --save`"
        ) from error


def save_n_gram_strengths(directory: Path, strengths: Iterable[tuple[int, float]]) -> None:
    """Write the orders and strengths of n-grams into the checkpoint's config. Raises
    `CheckpointError`, and `OSError` when it cannot be written."""
    config = _read_config(directory)
    config[N_GRAMS] = {str(order): round(strength, 3) for order, strength in strengths}
    draft = directory / f".{CONFIG}.draft"
    draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, directory / CONFIG)


def model_type(directory: Path) -> str:
    """What kind of checkpoint a directory holds: ours or a family's. Raises `CheckpointError`."""
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint directory {directory}")
    found = read_json(_existing(directory / CONFIG)).get("model_type")
    if not isinstance(found, str) or found not in (MODEL_TYPE, *FAMILIES):
        known = ", ".join(map(repr, (MODEL_TYPE, *FAMILIES)))
        raise CheckpointError(f"{directory / CONFIG} has model_type {found!r}; known are {known}")
    return found


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
    config = read_config(directory)
    tokenizer = OpenTokenizer.from_directory(directory, config)
    check(config)
    model = load_transformer(directory, config, device=device, dtype=dtype, convert=convert)
    return model, tokenizer


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing; a checkpoint directory holds {WEIGHTS}, {CONFIG} and {TOKENIZER}"
        )
    return file


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint directory {directory}")
    file = _existing(directory / CONFIG)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{file} has model_type {found!r}; here it must be {MODEL_TYPE!r}: other checkpoints "
            "can be served, not trained or exported"
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {config.get('format_version')}; "
            f"this Mezzotint reads version {FORMAT_VERSION}"
        )
    for key in ("tokenizer_sha256", "denoiser"):
        if key not in config:
            raise CheckpointError(f"{file} lacks the key {key!r}")
    return config


def _check_shapes(file: Path, model: Denoiser, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{file}: tensor {name} should have shape {expected.get(name, 'none at all')}, "
                f"found {found.get(name, 'nothing')}"
            )
