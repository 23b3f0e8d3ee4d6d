"""GGUF of a known architecture -> a `Transformer`: sizes from its metadata, names mapped, every
shape checked before any weight is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.api import CheckpointError
from model.backbone.gguf_file import GgufFile
from model.families.weights import check_shapes
from model.transformer import Transformer, TransformerConfig

ARCHITECTURES = ("qwen2", "llama")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

_NAMES = {
    "embedding": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "layers": "blk",
    "input_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_LONGEST_CONTEXT = 1 << 20
"""Positions; a number beyond is damage, and would be a table of that many rows."""
_SAME = 0.9
"""Cosine from which embedding and head are one matrix, quantised twice: 0.999 for Q5_0 against
Q8_0; two matrices that were trained apart have little in common."""


def stored_name(name: str) -> str:
    """What llama.cpp calls a parameter of `Transformer`."""
    return ".".join(_NAMES.get(part, part) for part in name.split("."))


def read_config(file: GgufFile) -> TransformerConfig:
    """The sizes that a file's metadata gives. Raises `CheckpointError`."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path} holds a model of the architecture {architecture!r}; known are "
            + ", ".join(ARCHITECTURES)
        )
    if EMBEDDING not in file.tensors or len(file.tensors[EMBEDDING].shape) != 2:
        raise CheckpointError(f"{file.path} lacks the matrix {EMBEDDING}, so it holds no model")
    try:
        return _config(file, architecture)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file.path} holds no model that runs here: {error}") from error


def _config(file: GgufFile, architecture: str) -> TransformerConfig:
    def value(key: str, default: Any = None) -> Any:
        found = file.metadata.get(f"{architecture}.{key}", default)
        if found is None:
            raise ValueError(f"its metadata lack {architecture}.{key}")
        return found

    def count(key: str, most: int | None = None) -> int:
        found = value(key)
        if not isinstance(found, int) or not 1 <= found <= (most or found):
            bound = f"from 1 to {most}" if most else "above 0"
            raise ValueError(f"{architecture}.{key} is {found!r}, not a whole number {bound}")
        return found

    heads, hidden = count("attention.head_count"), count("embedding_length")
    context = count("context_length", _LONGEST_CONTEXT)
    layers = count("block_count")
    if layers != (held := len({n.split(".")[1] for n in file.tensors if n.startswith("blk.")})):
        raise ValueError(f"{architecture}.block_count is {layers}, and it holds {held} blocks")
    head_dim = value("attention.key_length", hidden // heads)
    _refuse_variants(file, value, head_dim, context)
    return TransformerConfig(
        model_type=architecture,
        vocab_size=file.tensors[EMBEDDING].shape[0],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=count("feed_forward_length"),
        max_positions=context,
        rope_theta=float(value("rope.freq_base", 10_000.0)),
        norm_eps=float(value("attention.layer_norm_rms_epsilon")),
        is_tied=HEAD not in file.tensors or _are_one(file),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        attention="causal",
        shifts_logits=True,
        eos_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
    )


def _refuse_variants(
    file: GgufFile, value: Callable[..., Any], head_dim: int, context: int
) -> None:
    """Raise `ValueError` for what the shared Transformer does not compute."""
    scaling = value("rope.scaling.type", "none")
    if scaling == "linear" and value("rope.scaling.factor", 1.0) == 1.0:
        scaling = "none"
    if "rope_freqs.weight" in file.tensors:  # a factor for each frequency
        scaling = "llama3"
    if scaling != "none":
        raise ValueError(f"rotary scaling {scaling!r} is not supported, only plain positions")
    if value("rope.dimension_count", head_dim) != head_dim:
        raise ValueError("rotation of a part of each head is not supported")
    if value("attention.value_length", head_dim) != head_dim:
        raise ValueError("values of another size than keys are not supported")
    if value("attention.sliding_window", context) < context:
        raise ValueError("sliding-window attention is not supported")
    if value("expert_count", 0):
        raise ValueError("a mixture of experts is not supported")


def _are_one(file: GgufFile) -> bool:
    """Whether embedding and head are the same matrix, stored in two precisions."""
    embedding, head = file.tensors[EMBEDDING], file.tensors[HEAD]
    if embedding.shape != head.shape:
        return False
    step = max(1, head.shape[0] // 256)
    rows = [file.rows(name, step).flatten() for name in (EMBEDDING, HEAD)]
    return F.cosine_similarity(rows[0], rows[1], dim=0).item() > _SAME


def load_transformer(
    file: GgufFile,
    config: TransformerConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """Dequantise the weights into `dtype`. Raises `CheckpointError` before anything is loaded.

    Where embedding and head are one matrix, the head's precision is the better one and serves both.
    """
    with torch.device("meta"):
        model = Transformer(config)
    _check(file, model, config)
    parameters = [name for name, _ in model.named_parameters()]
    for name in tqdm(parameters, desc="weights", unit="tensor", disable=None, leave=False):
        path, _, attribute = name.rpartition(".")
        if path == "embedding" and config.is_tied:
            continue
        key = stored_name(name)
        if path == "head" and key not in file.tensors:
            key = EMBEDDING
        tensor = _in_halves(file.tensor(key, device=device, dtype=dtype), name, config)
        setattr(model.get_submodule(path), attribute, nn.Parameter(tensor, requires_grad=False))
    if config.is_tied:
        model.embedding.weight = model.head.weight
    model.register_rotation(device)
    return model.requires_grad_(False).eval()


def _check(file: GgufFile, model: Transformer, config: TransformerConfig) -> None:
    expected = {stored_name(name): tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: stored.shape for name, stored in file.tensors.items()}
    if config.is_tied and HEAD not in found:
        del expected[HEAD]
    check_shapes(file.path, expected, found)


def _in_halves(tensor: Tensor, name: str, config: TransformerConfig) -> Tensor:
    """Rows of Llama's queries and keys as the rotation here wants them, which turns the first half
    of a head against the second; in a GGUF file the two rows of a pair lie side by side."""
    part = name.split(".")[-2]
    if config.model_type != "llama" or part not in ("q_proj", "k_proj"):
        return tensor
    pairs = tensor.unflatten(0, (-1, config.head_dim // 2, 2))
    return pairs.transpose(1, 2).reshape(tensor.shape).contiguous()
