"""A denoiser's directory: `denoiser.safetensors` and `config.json`.

Matrices are stored in 8 bits a weight, a scale to a row. `config.json` remembers the backbone: over
the hidden states of another one a denoiser means nothing. Files are written beside their place and
then moved there: a crash leaves no half-written one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.api import CheckpointError
from model.denoiser.config import DenoiserConfig
from model.denoiser.network import Denoiser, WordTable
from model.transformer import TransformerConfig

if TYPE_CHECKING:  # where nothing reads GGUF files, the package that does need not be there
    from model.backbone.checkpoint import Backbone

MODEL_TYPE = "mezzotint-denoiser"
FORMAT_VERSION = 1
WEIGHTS, CONFIG = "denoiser.safetensors", "config.json"
SCALE = ".scale"
DRAFT_IDS = "draft_ids"
SMALLEST_MATRIX = 4096
"""Weights of the smallest matrix that is worth 8 bits."""


def save_denoiser(
    directory: Path,
    model: Denoiser,
    backbone: Backbone,
    *,
    weights: dict[str, Tensor] | None = None,
    thresholds: dict[str, float] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint. `weights`: those to store, if more exact than the model's own.

    `thresholds`: probabilities from which the middle is said to end, `end` and `canvas_end`.
    `training` is kept for people: steps, held-out figures. Raises `OSError`; what was there before
    is then intact.
    """
    aside = directory.with_name(f".{directory.name}.draft")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        stored = pack_weights(weights or model.state_dict())
        stored[DRAFT_IDS] = model.draft_ids.to("cpu", torch.int32)
        save_file(stored, aside / WEIGHTS)
        config = _config_of(model.config, backbone)
        config |= {"thresholds": thresholds or {}, "training": training or {}}
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        directory.mkdir(exist_ok=True)
        for file in aside.iterdir():  # file by file: a card beside the weights stays
            os.replace(file, directory / file.name)
    # safetensors reports a full disk as an error of its own.
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{directory} could not be written to ({error}); what was there is intact. Free some "
            "disk and try again"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def denoiser_config(directory: Path, digest: str, backbone: TransformerConfig) -> DenoiserConfig:
    """The sizes of a checkpoint that was trained on the backbone with this digest. Raises
    `CheckpointError`."""
    said = read_config(directory)
    if said["backbone"]["digest"] != digest:
        raise CheckpointError(
            f"{directory} was trained on the backbone {said['backbone']['name']} (SHA-256 "
            f"{said['backbone']['digest'][:12]}…), not on this one ({digest[:12]}…); use that "
            "backbone, or none of this denoiser"
        )
    try:
        sizes = dict(said["denoiser"])
        sizes["taps"] = tuple(sizes["taps"])
        return DenoiserConfig(backbone=backbone, **sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG} describes no denoiser: {error}") from error


def load_denoiser(
    directory: Path,
    digest: str,
    backbone: WordTable,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """Read a checkpoint for the backbone it was trained on, whose digest this is. Raises
    `CheckpointError`."""
    config = denoiser_config(directory, digest, backbone.config)
    file = directory / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; a denoiser's directory holds {WEIGHTS}")
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); fetch or train the denoiser again"
        ) from error
    ids = _draft_ids(file, stored, config)
    weights = unpack_weights(stored)
    model = Denoiser.of(config, backbone, ids)
    _check_shapes(file, model, weights)
    model.load_state_dict(weights)
    model.end_threshold, model.canvas_end_threshold = _thresholds(directory, read_config(directory))
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`, with all keys that are needed. Raises `CheckpointError`."""
    file = directory / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; a denoiser's directory holds {CONFIG}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
    if found != MODEL_TYPE:
        raise CheckpointError(f"{file} has model_type {found!r}; a denoiser's is {MODEL_TYPE!r}")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {config.get('format_version')}; "
            f"this Mezzotint reads version {FORMAT_VERSION}"
        )
    backbone = config.get("backbone")
    if not isinstance(backbone, dict) or not {"digest", "name"} <= backbone.keys():
        raise CheckpointError(f"{file} does not say which backbone it belongs to")
    return config


def pack_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is stored: matrices as int8 with a float32 scale a row, the rest in bf16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().to("cpu", torch.float32)
        if tensor.ndim == 2 and tensor.numel() >= SMALLEST_MATRIX:
            scale = tensor.abs().amax(dim=1).clamp(min=1e-12) / 127
            stored[name] = (tensor / scale[:, None]).round().to(torch.int8)
            stored[name + SCALE] = scale
        else:
            stored[name] = tensor.to(torch.bfloat16)
    return stored


def unpack_weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE) or name == DRAFT_IDS:
            continue
        scale = stored.get(name + SCALE)
        weights[name] = tensor.float() if scale is None else tensor.float() * scale[:, None]
    return weights


def _config_of(config: DenoiserConfig, backbone: Backbone) -> dict[str, Any]:
    sizes = dataclasses.asdict(config)
    del sizes["backbone"]
    return {
        "model_type": MODEL_TYPE,
        "format_version": FORMAT_VERSION,
        "backbone": {"name": backbone.path.name, "digest": backbone.digest},
        "denoiser": sizes,
    }


def _thresholds(directory: Path, said: dict[str, Any]) -> tuple[float | None, float | None]:
    found = said.get("thresholds", {})
    if not isinstance(found, dict) or not all(isinstance(v, float | int) for v in found.values()):
        raise CheckpointError(f"{directory / CONFIG} has no usable thresholds: {found!r}")
    return found.get("end"), found.get("canvas_end")


def _draft_ids(file: Path, stored: dict[str, Tensor], config: DenoiserConfig) -> Tensor:
    ids = stored.get(DRAFT_IDS)
    if ids is None or ids.ndim != 1 or not len(ids):
        raise CheckpointError(f"{file} has no list {DRAFT_IDS}")
    if int(ids.min()) < 0 or int(ids.max()) >= config.backbone.vocab_size:
        raise CheckpointError(f"{file}: {DRAFT_IDS} names tokens that the backbone does not have")
    return ids.long()


def _check_shapes(file: Path, model: Denoiser, weights: dict[str, Tensor]) -> None:
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{file}: tensor {name} should have shape {expected.get(name, 'none at all')}, "
                f"found {found.get(name, 'nothing')}"
            )
