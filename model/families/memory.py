"""How much memory an open checkpoint needs, asked before anything is loaded."""

from __future__ import annotations

from model.api import CheckpointError
from model.transformer import TransformerConfig

BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "int8": 1}
"""Of one weight of a layer, by dtype; embedding and head have two bytes at least."""
WORKING_BYTES = 1 << 30
"""For what runs: activations, logits, the driver's own."""


def bytes_needed(config: TransformerConfig, dtype: str) -> int:
    """Bytes of the weights in a dtype, and of what runs."""
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = config.hidden_size * config.head_dim * (heads + config.num_heads)
    layers = config.num_layers * (attention + 3 * config.hidden_size * config.ffn_size)
    tables = config.vocab_size * config.hidden_size * (1 if config.is_tied else 2)
    return layers * BYTES[dtype] + tables * max(BYTES[dtype], 2) + WORKING_BYTES


def require_memory(config: TransformerConfig, dtype: str, room: int, device: str) -> None:
    """Raise `CheckpointError` unless `room` bytes on `device` are enough: how much is needed, and
    which setting helps."""
    needed = bytes_needed(config, dtype)
    if needed <= room:
        return
    smaller = ("bfloat16", "int8") if device == "cpu" else ("bfloat16", "float8", "int8")
    fitting = [d for d in smaller if bytes_needed(config, d) <= room]
    advice = f"int8 needs {_gb(bytes_needed(config, 'int8'))}, too: "
    advice += "take a smaller checkpoint" if device == "cpu" else "use device 'cpu'"
    if fitting:
        advice = f"dtype {fitting[0]!r} needs {_gb(bytes_needed(config, fitting[0]))}"
    raise CheckpointError(
        f"this {config.model_type} model needs {_gb(needed)} in {dtype}, and {device} has "
        f"{_gb(room)}; {advice}"
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
