"""Safetensors of an open checkpoint -> a `Transformer`: names mapped, every shape checked first.

A checkpoint is one `model.safetensors`, or shards that `model.safetensors.index.json` lists. All
headers are read and compared before any weight is; files are memory-mapped, and one tensor at a
time goes to the device. Nothing else is opened: a pickle could run code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from model.api import CheckpointError
from model.families.configs import read_json
from model.transformer import Transformer, TransformerConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_HUGGING_FACE = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "layers": "model.layers",
    "input_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
}
_LLADA = {
    "embedding": "model.transformer.wte",
    "final_norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    "layers": "model.transformer.blocks",
    "input_norm": "attn_norm",
    "ffn_norm": "ff_norm",
    "o_proj": "attn_out",
    "gate_proj": "ff_proj",
    "down_proj": "ff_out",
}
_RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$")
"""Tables that some writers save and every reader computes."""

Convert = Callable[[nn.Linear], nn.Module]
"""Turns a layer's product into another one, a quantised one say, as soon as it is loaded."""


def stored_name(name: str, model_type: str) -> str:
    """What a family calls a parameter of `Transformer`."""
    names = _LLADA if model_type == "llada" else _HUGGING_FACE
    return ".".join(names.get(part, part) for part in name.split("."))


def load_transformer(
    directory: Path,
    config: TransformerConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    convert: Convert | None = None,
) -> Transformer:
    """Read the weights of an open checkpoint. Raises `CheckpointError` before anything is loaded.

    `convert` replaces the products of the layers, not the head.
    """
    with torch.device("meta"):
        model = Transformer(config)
    with ExitStack() as stack:
        stored = _open(stack, directory)
        is_tied = _is_tied(config, stored)
        _check(directory, model, config, stored, is_tied)
        _fill(model, config, stored, is_tied, device, dtype, convert)
    model.register_rotation(device)
    return model.requires_grad_(False).eval()


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, by name. Raises `CheckpointError`."""
    listed = _weight_map(directory)
    return [directory / name for name in (sorted(set(listed.values())) if listed else [SINGLE])]


def _weight_map(directory: Path) -> dict[str, str] | None:
    """The file of every tensor, where an index lists them."""
    index = directory / INDEX
    if not index.is_file():
        return None
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
        raise CheckpointError(f"{index} lacks the object 'weight_map'")
    return listed


def _open(stack: ExitStack, directory: Path) -> dict[str, Any]:
    """The opened file of every stored tensor, by the tensor's name."""
    listed = _weight_map(directory)
    names = sorted(set(listed.values())) if listed is not None else [SINGLE]
    files = {name: _opened(stack, directory, name, names) for name in names}
    found = {tensor: file for file in files.values() for tensor in file.keys()}  # noqa: SIM118
    for tensor, name in (listed or {}).items():
        if found.get(tensor) is not files[name]:
            raise CheckpointError(
                f"{directory / INDEX} says that {name} holds {tensor}; it does not"
            )
    return found


def _opened(stack: ExitStack, directory: Path, name: str, names: list[str]) -> Any:
    path = directory / name
    if path.parent != directory or path.suffix != ".safetensors":
        raise CheckpointError(f"{directory / INDEX} lists {name!r}; only safetensors beside it are")
    if not path.is_file():
        missing = [other for other in names if not (directory / other).is_file()]
        raise CheckpointError(
            f"{directory} lacks {', '.join(missing)}; fetch the checkpoint again (only safetensors "
            "are read)"
        )
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated, too long or damaged: {error}; "
            "fetch it again"
        ) from error


def _is_tied(config: TransformerConfig, stored: dict[str, Any]) -> bool:
    """Whether the embedding is the head. A stored head counts even where the config ties it: what
    dLLM converted has one of its own."""
    is_stored = stored_name("head.weight", config.model_type) in stored
    return config.is_tied is not False and not is_stored


def _check(
    directory: Path,
    model: Transformer,
    config: TransformerConfig,
    stored: dict[str, Any],
    is_tied: bool,
) -> None:
    """Raise `CheckpointError` unless the tensors are those of the model, in shape as well."""
    expected = {
        stored_name(name, config.model_type): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    if is_tied:
        del expected[stored_name("head.weight", config.model_type)]
    found = {
        name: tuple(file.get_slice(name).get_shape())
        for name, file in stored.items()
        if not _RECOMPUTED.search(name)
    }
    check_shapes(directory, expected, found)


def check_shapes(
    path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise `CheckpointError` unless a checkpoint has the tensors of the model, no more, no less,
    in their shapes."""
    wrong = [
        f"{name} should have shape {_shape(expected, name, 'none at all')}, "
        f"found {_shape(found, name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{path}: tensor " + "; tensor ".join(wrong[:3]) + more)


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, otherwise: str) -> str:
    return str(list(shapes[name])) if name in shapes else otherwise


def _fill(
    model: Transformer,
    config: TransformerConfig,
    stored: dict[str, Any],
    is_tied: bool,
    device: torch.device | str,
    dtype: torch.dtype,
    convert: Convert | None,
) -> None:
    """Put the weights into the model, module by module, so that a conversion needs no room for
    all of what it replaces."""
    modules = list(_with_parameters(model))
    for path, module in tqdm(modules, desc="weights", unit="tensor", disable=None, leave=False):
        for name in dict(module.named_parameters(recurse=False)):
            key = stored_name(f"{path}.{name}", config.model_type)
            if path == "head" and is_tied:
                module.weight = model.embedding.weight
                continue
            tensor = stored[key].get_tensor(key).to(device=device, dtype=dtype)
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        if convert is not None and path.startswith("layers.") and isinstance(module, nn.Linear):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, convert(module))


def _with_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            yield path, module
