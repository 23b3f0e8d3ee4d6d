"""A checkpoint, ours or an open one -> the completer of it, on a device that has room for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.api import CheckpointError
from model.checkpoint import (
    MODEL_TYPE,
    load_checkpoint,
    load_open_checkpoint,
    model_type,
    n_gram_strengths,
)
from model.denoiser import Denoiser
from model.engine import float8
from model.engine.assembly import engine_for
from model.engine.eight_bits import Float8Linear, Int8Linear
from model.engine.joint_runner import ContextCache
from model.engine.n_grams import Strength
from model.engine.open_assembly import canvas_slots, open_engine
from model.families.layout import OpenLayout
from model.families.memory import require_memory
from model.families.tokenizer import OpenTokenizer
from model.infill import StreamLayout
from model.serving.completer import EngineCompleter
from model.tokenizer import CodeTokenizer
from model.transformer import Transformer, TransformerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EIGHT_BITS = {"float8": Float8Linear, "int8": Int8Linear}
"""Dtypes of the layers' weights alone; everything else then has the device's usual one."""


def load_completer(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    context_cache: ContextCache = "none",
) -> EngineCompleter:
    """Load a checkpoint directory, or a hub id.

    `context_cache` is for open checkpoints (`model.engine.joint_runner`). Raises `CheckpointError`,
    also for an unusable device.
    """
    chosen = _device(device)
    if dtype == "float8" and not float8.is_supported(chosen):
        raise CheckpointError(
            "dtype 'float8' needs a CUDA card of compute capability 8.9 or above; use bfloat16"
        )
    directory = path if path.is_dir() else _from_hub(path)
    is_ours = model_type(directory) == MODEL_TYPE
    if is_ours and dtype == "int8":
        raise CheckpointError("dtype 'int8' is for open checkpoints; this one is small enough")
    try:
        if not is_ours:
            return _open_completer(directory, chosen, dtype, context_cache)
        loaded_as = _dtype("bfloat16" if dtype == "float8" else dtype, chosen)
        model, tokenizer = load_checkpoint(directory, device=chosen, dtype=loaded_as)
        return completer_of(
            model,
            tokenizer,
            is_float8=dtype == "float8",
            directory=directory,
            strengths=[Strength(*each) for each in n_gram_strengths(directory)],
        )
    except ValueError as error:  # sizes that float8 cannot have
        raise CheckpointError(f"{path} cannot be run: {error}") from error


def completer_of(
    model: Denoiser,
    tokenizer: CodeTokenizer,
    *,
    is_float8: bool = False,
    directory: Path | None = None,
    strengths: Sequence[Strength] = (),
) -> EngineCompleter:
    """The completer of a denoiser of ours. Raises `ValueError` for sizes float8 cannot have."""
    engine = engine_for(model, tokenizer, is_float8=is_float8, chooses=True, strengths=strengths)
    return EngineCompleter(engine, tokenizer, StreamLayout(tokenizer), directory=directory)


def _open_completer(
    directory: Path, device: torch.device, dtype: str, context_cache: ContextCache
) -> EngineCompleter:
    model, tokenizer = _load_open(directory, device, dtype)
    layout = OpenLayout(model.config, tokenizer)
    return EngineCompleter(
        open_engine(model, layout, cache=context_cache),
        tokenizer,
        layout,
        canvas_slots=canvas_slots(layout),
        at_least="surest",
        directory=directory,
    )


def _from_hub(path: Path) -> Path:
    # Takes a second to import, which local directories need not pay.
    from model.families.hub import local_directory

    return local_directory(path)


def _load_open(
    directory: Path, device: torch.device, dtype: str
) -> tuple[Transformer, OpenTokenizer]:
    """An open checkpoint, once it is known to fit. Raises `CheckpointError`."""
    loaded_as = _dtype("auto" if dtype in EIGHT_BITS else dtype, device)
    name = dtype if dtype in EIGHT_BITS else str(loaded_as).removeprefix("torch.")

    def check(config: TransformerConfig) -> None:
        room = _memory_of(device)
        if room is not None:
            require_memory(config, name, room, str(device))

    return load_open_checkpoint(
        directory, device=device, dtype=loaded_as, convert=EIGHT_BITS.get(dtype), check=check
    )


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
        # On a CPU fp32 is faster than bf16 (docs/experiments.md), and reused context stays exact.
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        known = ", ".join((*DTYPES, *EIGHT_BITS))
        raise CheckpointError(f"dtype {name!r} is not known; use auto or one of {known}")
    return DTYPES[name]
