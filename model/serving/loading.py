"""A model on this machine, or a hub id -> the completer of it, on a device that has room for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from model.api import CheckpointError, hub_id
from model.backbone.catalogue import DEFAULT, resolve
from model.backbone.checkpoint import OpenedBackbone, is_backbone, open_backbone
from model.denoiser.checkpoint import denoiser_config, load_denoiser
from model.denoiser.shipped import denoiser_folder
from model.engine.canvas.assembly import canvas_slots, open_engine
from model.engine.draft.assembly import backbone_engine
from model.engine.run import float8
from model.engine.run.cpu_choice import cpu_forward
from model.engine.run.cuda_forward import CudaForward
from model.engine.run.eight_bits import Float8Linear, Int8Linear
from model.engine.run.forward import Forward
from model.engine.run.joint_runner import ContextCache
from model.engine.run.torch_forward import TorchForward
from model.families.checkpoint import load_open_checkpoint
from model.families.layout import OpenLayout
from model.families.memory import require_memory
from model.serving.backbone_completer import BackboneCompleter
from model.serving.canvas_completer import CanvasCompleter
from model.serving.completer import EngineCompleter
from model.transformer import TransformerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EIGHT_BITS = {"float8": Float8Linear, "int8": Int8Linear}
"""Dtypes of the layers' weights alone; everything else then has the device's usual one."""


def load_completer(
    model: str | Path = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "auto",
    context_cache: ContextCache = "none",
) -> EngineCompleter:
    """Load a backbone by its name, a GGUF file, a checkpoint directory, or a hub id.

    `context_cache` is for open diffusion checkpoints (`model.engine.run.joint_runner`). Raises
    `CheckpointError`, also for an unusable device.
    """
    chosen = _device(device)
    if dtype == "float8" and not float8.is_supported(chosen):
        raise CheckpointError(
            "dtype 'float8' needs a CUDA card of compute capability 8.9 or above; use bfloat16"
        )
    path = _here(model)
    try:
        if is_backbone(path):
            return _backbone_completer(path, chosen, dtype)
        return _canvas_completer(path, chosen, dtype, context_cache)
    except ValueError as error:  # sizes that float8 cannot have
        raise CheckpointError(f"{path} cannot be run: {error}") from error


def completer_of(
    backbone: OpenedBackbone,
    forward: Forward,
    *,
    denoiser: Path | None = None,
    cache_bytes: int | None = None,
) -> BackboneCompleter:
    """The completer of a backbone that something computes, and of the checkpoint of a denoiser,
    whose layers it taps. Raises `ValueError` for too small a cache, and `CheckpointError`."""
    drafting: dict[str, Any] = {}
    if denoiser is not None:
        loaded = load_denoiser(
            denoiser, backbone.digest, forward, device=forward.device, dtype=forward.kv_dtype
        )
        drafting = {
            "denoiser": forward.beside(loaded),
            "end_threshold": loaded.end_threshold,
            "canvas_end_threshold": loaded.canvas_end_threshold,
        }
    engine = backbone_engine(backbone.tokenizer, forward, cache_bytes=cache_bytes, **drafting)
    return BackboneCompleter(engine, backbone)


def _here(model: str | Path) -> Path:
    """Where a model lies on this machine; a hub id's is fetched."""
    path = resolve(model)
    if path.exists() or hub_id(str(model)) is None:
        return path
    # Takes a second to import, which what lies here need not pay.
    from model.families.hub import local_directory

    return local_directory(path)


def _backbone_completer(path: Path, device: torch.device, dtype: str) -> BackboneCompleter:
    backbone = open_backbone(path)
    denoiser = denoiser_folder(backbone.digest)
    wanted: dict[str, Any] = {}
    if denoiser is not None:
        config = denoiser_config(denoiser, backbone.digest, backbone.config)
        num_layers = backbone.config.num_layers + config.num_layers
        wanted = {"tapped_layers": config.taps, "num_kv_layers": num_layers}
    if device.type == "cpu" and dtype in ("auto", "int8"):
        forward: Forward = cpu_forward(
            path, backbone.digest, lambda: backbone.load().model, **wanted
        )
        return completer_of(backbone, forward, denoiser=denoiser)
    loaded_as = _dtype("auto" if dtype == "float8" else dtype, device)
    model = backbone.load(device=device, dtype=loaded_as).model
    if device.type == "cuda":
        forward = CudaForward(model, is_float8=dtype == "float8", **wanted)
    else:
        forward = TorchForward(model, **wanted)
    return completer_of(backbone, forward, denoiser=denoiser)


def _canvas_completer(
    path: Path, device: torch.device, dtype: str, context_cache: ContextCache
) -> CanvasCompleter:
    """An open diffusion checkpoint, once it is known to fit. Raises `CheckpointError`."""
    loaded_as = _dtype("auto" if dtype in EIGHT_BITS else dtype, device)
    name = dtype if dtype in EIGHT_BITS else str(loaded_as).removeprefix("torch.")

    def check(config: TransformerConfig) -> None:
        room = _memory_of(device)
        if room is not None:
            require_memory(config, name, room, str(device))

    model, tokenizer = load_open_checkpoint(
        path, device=device, dtype=loaded_as, convert=EIGHT_BITS.get(dtype), check=check
    )
    layout = OpenLayout(model.config, tokenizer)
    engine = open_engine(model, layout, cache=context_cache)
    return CanvasCompleter(engine, layout, canvas_slots(layout), path=path)


def _memory_of(device: torch.device) -> int | None:
    """Bytes that a model can have: what is free of a card, all that the machine has on a CPU; None
    where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"device {name!r} is not known; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device {name!r} is not supported; use auto, cpu or cuda")
    num_cuda = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_cuda:
        raise CheckpointError(
            f"device {name!r}: this torch sees {num_cuda} CUDA devices; "
            + ("use a lower number" if num_cuda else "use 'cpu'")
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        known = ", ".join((*DTYPES, *EIGHT_BITS))
        raise CheckpointError(f"dtype {name!r} is not known; use auto or one of {known}")
    return DTYPES[name]
